//! A lying coordinator, for tests: a coordinator of the roster with a real place in the network. It takes an honest
//! proposal, changes one thing, and proposes the result to live operators on a real chain. See
//! `docs/lying-coordinator.md`.
//!
//! ```text
//! operators --batches--> standing --+
//! bitcoind  --outputs--> coins -----+--> honest draft --one change--> lie --wire--> every operator
//!                                                                                       |
//!                                     table <-- finding <-- refusal, page, what is kept <-+
//! ```

mod coins;
mod course;
mod draft;
mod encoding;
mod fee;
mod inputs;
mod ledger;
mod lie;
mod neighbours;
mod outputs;
mod pages;
mod proofs;
mod sequence;
mod session;
pub mod settings;
mod stage;
mod standing;
mod table;
mod wire;

use ::ledger::AccountSecret;
use anyhow::{Context as _, ensure};
use chain::BitcoinRpc;
use futures::{StreamExt as _, stream};
use node::files;
use proof::Keys;

pub use lie::{Finding, Kind, Layer};
pub use table::Table;

use coins::Purse;
use pages::Pages;
use session::Honest;
use settings::Settings;
use stage::{Accomplice, Parts, Stage};
use standing::Standing;
use wire::Wire;

/// Lies that are told at the same time: as many of one coordinator's proposals as an operator verifies. Some take
/// the operators seconds, as they wait for confirmations.
const AT_A_TIME: usize = 4;

/// Tells all lies to the operators of a local network.
///
/// # Errors
/// When the network is not there, or the operators refuse what is honest. A lie that is not refused is no error
/// here: the table says it.
pub async fn run(settings: &Settings) -> anyhow::Result<Table> {
    let stage = set(settings).await?;
    let table = tell(&stage).await;
    stage.wire.leave().await;
    stage.second.leave().await;
    table
}

/// Joins the network, puts the coins on the chain and makes the honest proposal.
async fn set(settings: &Settings) -> anyhow::Result<Stage> {
    let roster = files::load_roster(&settings.roster)?;
    let parameters = files::load_parameters(&settings.parameters)?;
    let identity = files::load_identity(&settings.identity)?;
    let second = files::load_identity(&settings.second_identity)?;
    let rpc = BitcoinRpc::new(&settings.bitcoind)?;
    let keys = Keys::load(&settings.keys).context("the proof keys can't be loaded")?;
    let wire = Wire::connect(&identity, &settings.listen, &roster, &parameters).await?;
    let second = Wire::connect(&second, &settings.second_listen, &roster, &parameters).await?;
    let pages = Pages::new(&wire.operators, &settings.pages)?;
    let purse = Purse::new(&rpc, parameters.network);
    let first = wire.operators.first().context("no operators")?.key;
    let standing = Standing::learn(&wire, first, &rpc, roster, parameters, keys).await?;
    let mut secret = [0; 32];
    hex::decode_to_slice(&settings.accomplice, &mut secret)?;
    let accomplice = Accomplice::new(AccountSecret::from_bytes(&secret)?, &standing)?;
    let coins = coins::lay_out(&purse, &standing.vault, accomplice.key()).await?;
    pages.until_height(purse.height().await?).await?;
    let parts = Parts {
        wire,
        second,
        pages,
        standing,
        coins,
        accomplice,
        caps: settings.caps,
    };
    Stage::set(parts, &purse).await
}

async fn tell(stage: &Stage) -> anyhow::Result<Table> {
    let honest = Honest::open(stage).await?;
    let mut lies = inputs::lies(stage)?;
    lies.extend(outputs::lies(stage));
    lies.extend(fee::lies(stage)?);
    lies.extend(ledger::lies(stage));
    lies.extend(proofs::lies(stage).await?);
    lies.extend(sequence::lies(stage));
    lies.extend(encoding::lies(stage));
    let mut findings: Vec<Finding> = stream::iter(lies)
        .map(|lie| stage.tell(lie))
        .buffered(AT_A_TIME)
        .collect()
        .await;
    findings.extend(sequence::geneses(stage).await);
    for operator in stage.operators() {
        let page = stage.pages.read(&operator).await?;
        ensure!(
            page.sessions == 1,
            "{operator} holds {} sessions, and only the honest one is not refused",
            page.sessions
        );
    }
    findings.extend(encoding::messages(stage).await);
    findings.push(encoding::stranger(stage).await?);
    findings.extend(session::play(stage, honest).await?);
    Ok(Table::new(findings))
}

/// Mines until the promise that the liar has drawn from one operator stands in no other batch's way (S7).
///
/// # Errors
/// When bitcoind does not do it.
pub async fn wait_out_the_promise(settings: &Settings) -> anyhow::Result<()> {
    let parameters = files::load_parameters(&settings.parameters)?;
    let rpc = BitcoinRpc::new(&settings.bitcoind)?;
    Purse::new(&rpc, parameters.network)
        .mine(parameters.replacement_delay.into())
        .await
}
