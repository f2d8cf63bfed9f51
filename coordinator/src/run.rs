//! Starts the coordinator and runs it: one task follows the chain, one answers the network, one carries
//! batches through the stages.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use chain::{
    follow::{Follower, NodeStatus},
    rpc::BitcoinRpc,
};
use node::{
    files,
    history::{self, History},
    inbox::Inbox,
};
use p2p::{Network, PeerAddress};
use proof::{Keys, ProvingKey};
use protocol::{
    admission::Admission, identity::PeerKey, parameters::Parameters, reputation::Standing,
    roster::Roster, vault::Vault,
};
use storage::{Changes, OpenError, Schema, Store};
use tokio::sync::{Mutex, Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    admin, aggregate,
    answer::{self, Desk},
    api::{self, PerAddress},
    batch, broadcast, bump, confirm,
    copies::Copies,
    detect, dissolve,
    epoch::{self, Epochs},
    events,
    genesis::Founding,
    gossip::Sessions,
    live::{Live, Reader, SharedHistory},
    pipeline::{Pipeline, StageError, commit},
    pool::{self, NoncePool},
    prove, rebuild, records,
    settings::Settings,
    terms::{self, Shown},
};

/// The pipeline looks for work at least this often.
const TICK: Duration = Duration::from_millis(250);
/// After a stage has failed it is tried again this much later.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs a coordinator until `stop` is set.
///
/// # Errors
/// What makes it impossible to start, or to go on.
pub async fn run(settings_file: &Path, stop: CancellationToken) -> anyhow::Result<()> {
    let settings = Settings::load(settings_file)?;
    let roster = Arc::new(files::load_roster(&settings.roster)?);
    let parameters = Arc::new(files::load_parameters(&settings.parameters)?);
    settings.fees.check(parameters.network)?;
    let identity = files::load_identity(&settings.data_dir.join("identity"))?;
    let me = identity.public();
    anyhow::ensure!(
        roster.is_coordinator(&me),
        "this node's key {me} is not among the roster's coordinators"
    );
    tracing::info!("loading the proving key");
    let keys = Keys::load(&settings.keys).context("the proof keys can't be loaded")?;
    let verifying_key_hash = keys.verifying.hash().0;
    let setup = keys.verifying.label().to_owned();
    let rpc = BitcoinRpc::new(&settings.bitcoind)?;
    let agreed = agreed(&roster, &parameters);
    let store = open_store(&settings, &agreed)?;
    let (network, events) = p2p::start(
        &identity,
        &p2p::Settings {
            listen: settings.listen.clone(),
            peers: peers(&roster, &me),
            network: agreed.clone(),
            heartbeat: p2p::HEARTBEAT_INTERVAL,
        },
    )
    .await?;
    let others: Vec<PeerKey> = roster
        .members()
        .map(|member| member.key)
        .filter(|key| *key != me)
        .collect();
    anyhow::ensure!(
        settings.copies <= others.len(),
        "copies is {}, but there are only {} other nodes",
        settings.copies,
        others.len()
    );
    let live = watch::Sender::new(Live {
        phase: "starting".into(),
        ..Live::default()
    });
    let reader = Reader {
        store: store.clone(),
        live: live.subscribe(),
        history: SharedHistory::default(),
        parameters: parameters.clone(),
        roster: roster.clone(),
        verifying_key_hash,
        setup,
        writing: Arc::new(Mutex::new(())),
        wake: Arc::new(Notify::new()),
        shown: Arc::new(Shown::new(store.clone(), roster.clone())),
        copies: Copies::new(network.clone(), others, settings.copies),
    };
    let listener = tokio::net::TcpListener::bind(settings.http)
        .await
        .with_context(|| format!("can't listen on {}", settings.http))?;
    tracing::info!(url = %format!("http://{}", listener.local_addr()?), "serving HTTP");
    let bounds = PerAddress {
        requests_per_second: settings.requests_per_second,
        event_streams: settings.event_streams_per_address,
    };
    let router = api::router(reader.clone(), bounds, settings.admin_tokens.clone());
    let http = tokio::spawn(api::serve(listener, router, stop.clone()));
    let sessions = Sessions::default();
    let epochs = Epochs::new(live.subscribe(), reader.wake.clone());
    tokio::spawn(epoch::watch(
        network.clone(),
        roster.clone(),
        epochs.clone(),
        stop.clone(),
    ));
    let answering = tokio::spawn(answer::run(
        Inbox::new(events, Admission::new(roster.clone(), me), |_| ()),
        Desk {
            store: store.clone(),
            roster: roster.clone(),
            sessions: sessions.clone(),
            epochs: epochs.clone(),
            rpc: rpc.clone(),
            reader: reader.clone(),
            submissions: Arc::new(Semaphore::new(answer::MAX_SUBMISSIONS)),
        },
        stop.clone(),
    ));
    let result = found_and_follow(
        Parts {
            settings,
            roster,
            parameters,
            me,
            keys: Arc::new(keys.proving),
            verifying_key_hash,
            rpc,
            store,
            network: network.clone(),
            sessions,
            epochs,
            live,
            reader,
        },
        stop.clone(),
    )
    .await;
    stop.cancel();
    network.shutdown().await;
    let _ = answering.await;
    http.await??;
    result
}

/// What all nodes of one network agree on.
fn agreed(roster: &Roster, parameters: &Parameters) -> String {
    hex::encode(protocol::hash::tagged(
        "drawbridge/network",
        &[&roster.hash(), &parameters.hash()],
    ))
}

fn open_store(settings: &Settings, agreed: &str) -> Result<Store, OpenError> {
    let schema = Schema {
        kind: "coordinator",
        network: agreed,
        columns: &records::columns(),
    };
    Store::open(settings.data_dir.join("db"), &schema)
}

/// Takes back the alarm of a coordinator that does not run, after somebody has looked at it. Gives what it was. While the
/// treasury is gone, the operators sign nothing whatever is cleared here.
///
/// # Errors
/// Files or database that can't be read, or that a running coordinator has open.
pub fn clear_alarm(settings_file: &Path, reason: &str) -> anyhow::Result<Option<String>> {
    let settings = Settings::load(settings_file)?;
    let roster = files::load_roster(&settings.roster)?;
    let parameters = files::load_parameters(&settings.parameters)?;
    let store = open_store(&settings, &agreed(&roster, &parameters))?;
    Ok(admin::clear_alarm(&store, reason)?)
}

struct Parts {
    settings: Settings,
    roster: Arc<Roster>,
    parameters: Arc<Parameters>,
    me: PeerKey,
    keys: Arc<ProvingKey>,
    verifying_key_hash: [u8; 32],
    rpc: BitcoinRpc,
    store: Store,
    network: Network,
    sessions: Sessions,
    epochs: Epochs,
    live: watch::Sender<Live>,
    reader: Reader,
}

async fn found_and_follow(parts: Parts, stop: CancellationToken) -> anyhow::Result<()> {
    let Parts {
        settings,
        roster,
        parameters,
        me,
        keys,
        verifying_key_hash,
        rpc,
        store,
        network,
        sessions,
        epochs,
        live,
        reader,
    } = parts;
    let founding = Founding {
        store: &store,
        network: &network,
        sessions: &sessions,
        rpc: &rpc,
        parameters: &parameters,
        roster: roster.clone(),
        verifying_key_hash,
        me,
        live: &live,
        stop: &stop,
    };
    let Some(vault) = founding.vault().await? else {
        return Ok(());
    };
    let vault = Arc::new(vault);
    tracing::info!(vault = %hex::encode(vault.id().0), "the vault is open");
    // Without a history this coordinator is new, or has lost its disk: no block is looked at before the addresses are
    // known.
    let is_new = store.get(&history::POSITION, &())?.is_none();
    live.send_modify(|live| live.phase = "fetching what other nodes keep".into());
    let operations =
        rebuild::fetch_requests(&network, &roster, &reader, &vault, is_new, &stop).await;
    let start = store.get(&records::GENESIS_SEARCH, &())?.unwrap_or(0);
    let opened = History::open(store.clone(), vault.clone(), start)?;
    let follower = Follower::new(rpc.clone(), parameters.network, opened.position().clone());
    let height = opened.height();
    // What a block has changed, if the coordinator died before it was written.
    let mut changes = Changes::new();
    confirm::take(
        &store,
        &opened,
        parameters.final_confirmations,
        &mut changes,
    )?;
    events::announce(&store, &opened, true, &mut changes)?;
    commit(&store, changes).await?;
    terms::watch_all(&store, &vault.group_key())?;
    *reader
        .history
        .write()
        .unwrap_or_else(PoisonError::into_inner) = Some(opened);
    let alarm = store.get(&history::ALARM, &())?;
    live.send_modify(|live| {
        live.alarm = alarm;
        live.vault = Some(vault.clone());
        live.phase = "idle".into();
        live.is_behind = true;
        live.height = height;
    });
    let writing = reader.writing.clone();
    let pool = NoncePool::default();
    let pipeline = Pipeline {
        store: store.clone(),
        network: network.clone(),
        sessions,
        pool: pool.clone(),
        epochs,
        rpc,
        keys,
        vault: vault.clone(),
        roster,
        me,
        settings,
        writing: writing.clone(),
        stop: stop.clone(),
        waiting_since: None,
        looked_ms: 0,
        stuck: BTreeMap::new(),
        standing: Standing::default(),
        history: reader.history.clone(),
        live: live.clone(),
    };
    if pipeline.settings.nonce_pool {
        tokio::spawn(pool::watch(
            network.clone(),
            pipeline.roster.clone(),
            pool,
            live.subscribe(),
            stop.clone(),
        ));
    }
    let rebuilding = rebuild::Rebuilder {
        network: network.clone(),
        reader: reader.clone(),
        writing: writing.clone(),
        vault: vault.clone(),
        operations,
        recorded: None,
    };
    let rebuilding = tokio::spawn(rebuilding.run(stop.clone()));
    let working = tokio::spawn(work(pipeline, reader.wake.clone(), stop.clone()));
    let result = follow(
        follower, &store, &vault, &reader, &live, &network, &writing, &stop,
    )
    .await
    .inspect_err(StageError::stop_if_unwritten);
    stop.cancel();
    working.await?;
    rebuilding.await?;
    result.map_err(Into::into)
}

/// Every other node of the roster, with its addresses.
fn peers(roster: &Roster, me: &PeerKey) -> Vec<PeerAddress> {
    roster
        .members()
        .filter(|member| member.key != *me)
        .map(|member| PeerAddress {
            key: member.key,
            addresses: member.addresses.clone(),
        })
        .collect()
}

/// Carries batches through the stages, one step at a time.
async fn work(mut pipeline: Pipeline, wake: Arc<Notify>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        match step(&mut pipeline).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => {
                error.stop_if_unwritten();
                tracing::warn!(error = %anyhow::Error::from(error).root_cause(), "a stage failed; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
        tokio::select! {
            () = wake.notified() => {}
            () = tokio::time::sleep(TICK) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// The stages, last first, so that what is nearest to the chain goes on first.
async fn step(pipeline: &mut Pipeline) -> Result<bool, StageError> {
    if broadcast::run(pipeline).await? {
        return Ok(true);
    }
    dissolve::run(pipeline).await?;
    broadcast::again(pipeline).await?;
    if epoch::run(pipeline).await? {
        return Ok(true);
    }
    Ok(aggregate::run(pipeline).await?
        || bump::run(pipeline).await?
        || prove::run(pipeline).await?
        || batch::form(pipeline).await?)
}

/// Whether the own Bitcoin node is at the network's tip, and this coordinator at its node's.
fn is_reached(node: &NodeStatus, height: u32) -> bool {
    node.reachable
        && !node.initial_block_download
        && node.blocks >= node.headers
        && height >= node.blocks
}

/// Follows the chain: detect, history, confirm.
#[allow(
    clippy::too_many_arguments,
    reason = "the parts of one loop; it is called once"
)]
async fn follow(
    mut follower: Follower,
    store: &Store,
    vault: &Vault,
    reader: &Reader,
    live: &watch::Sender<Live>,
    network: &Network,
    writing: &Mutex<()>,
    stop: &CancellationToken,
) -> Result<(), StageError> {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let status = follower.status();
    let final_confirmations = vault.parameters().final_confirmations;
    loop {
        let step = tokio::select! {
            step = follower.next() => step?,
            _ = tick.tick() => {
                let node = status.borrow().clone();
                live.send_modify(|live| {
                    live.connected = network.connected();
                    live.bitcoind = node.reachable;
                    live.is_behind &= !is_reached(&node, live.height);
                });
                continue;
            }
            () = stop.cancelled() => return Ok(()),
        };
        let _writing = writing.lock().await;
        let mut changes = Changes::new();
        detect::take(store, vault, &step.event, &mut changes)?;
        commit(store, changes).await?;
        let mut changes = Changes::new();
        let (moved, height) = {
            let mut history = reader
                .history
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let history = history
                .as_mut()
                .ok_or_else(|| StageError::Fault("no history".into()))?;
            let moved = history.take(step)?;
            confirm::take(store, history, final_confirmations, &mut changes)?;
            let is_behind = live.borrow().is_behind;
            events::announce(store, history, is_behind, &mut changes)?;
            (moved, history.height())
        };
        commit(store, changes).await?;
        if let Some(reason) = moved.alarm() {
            tracing::error!(%reason, "ALARM: no batch is formed or signed any more (S14)");
            live.send_modify(|live| live.alarm = Some(reason));
        }
        live.send_modify(|live| {
            live.height = height;
            if !moved.connected.is_empty() {
                live.phase = "idle".into();
            }
        });
        reader.wake.notify_one();
    }
}
