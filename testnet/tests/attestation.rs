//! Key generation where the roster requires an attestation: real operators on a real network, with an own chain of
//! certificates in the place of AWS's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

#[path = "../../attestation/tests/support/mod.rs"]
mod support;

use std::{
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use attestation::{Attest, Claim, Requirement, socket};
use bitcoin::Network;
use operator::{
    generate,
    peers::{self, AskError, Heard, Inbox, Peers},
    settings::{FILE_NAME, Settings},
};
use protocol::{
    identity::{Identity, PeerKey},
    message::{Answer, Ask, Rule},
    parameters::Parameters,
    roster::{Member, Roster},
};
use support::{Enclave, expected};
use tokio::sync::oneshot;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A vault's nodes, none of them running yet.
struct Ground {
    dir: tempfile::TempDir,
    roster: Arc<Roster>,
    parameters: Parameters,
    verifying_key: PathBuf,
    enclave: Arc<Enclave>,
    /// Port of the first operator's status page, where a test looks at it.
    status: Option<u16>,
}

/// Operators in the order of the roster; the last identity is the coordinator's.
fn identity(index: usize) -> Identity {
    Identity::from_secret(&[u8::try_from(index).unwrap() + 1; 32])
}

fn free_port() -> u16 {
    testnet::hosts::free_port().unwrap()
}

impl Ground {
    fn lay_out(operators: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let enclave = Arc::new(Enclave::new());
        let member = |index: usize| Member {
            name: format!("node-{index}"),
            addresses: vec![format!("/ip4/127.0.0.1/tcp/{}", free_port())],
            key: identity(index).public(),
            founding_key: None,
        };
        let roster = Roster {
            threshold: 2,
            operators: (0..operators).map(member).collect(),
            coordinators: vec![member(operators)],
            attestation: Requirement::Nitro(expected(enclave.issued.root())),
        };
        let parameters = Parameters::defaults(Network::Regtest);
        let keys = testnet::network::proof_keys(|_| {}).unwrap();
        std::fs::write(
            dir.path().join("roster.toml"),
            toml::to_string(&roster).unwrap(),
        )
        .unwrap();
        std::fs::write(
            dir.path().join("vault.toml"),
            toml::to_string(&parameters).unwrap(),
        )
        .unwrap();
        Self {
            dir,
            roster: Arc::new(roster),
            parameters,
            verifying_key: keys.join(proof::VERIFYING_KEY_FILE),
            enclave,
            status: None,
        }
    }

    fn socket(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("attest-{index}.sock"))
    }

    /// The settings of an operator as its administrator would write them. There is no bitcoind: key generation needs
    /// none.
    fn settings(&self, index: usize) -> Settings {
        let folder = self.dir.path().join(format!("operator-{index}"));
        node::files::create_private_folder(&folder).unwrap();
        let private = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).unwrap();
            let mode = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(folder.join(name), mode).unwrap();
        };
        private("identity", &hex::encode(identity(index).secret_bytes()));
        private("passphrase", "correct horse battery staple");
        private(operator::policy::FILE_NAME, &operator::policy::template());
        let mut table: toml::Table = operator::settings::template().parse().unwrap();
        let mut set = |name: &str, value: toml::Value| table.insert(name.to_owned(), value);
        set("roster", "../roster.toml".into());
        set("parameters", "../vault.toml".into());
        set("passphrase_file", "passphrase".into());
        set("sealing", "fast".into());
        let text = |path: &Path| toml::Value::from(path.to_str().unwrap());
        set("verifying_key", text(&self.verifying_key));
        set("attestation_socket", text(&self.socket(index)));
        set(
            "listen",
            self.roster.operators[index].addresses.clone().into(),
        );
        if let Some(port) = self.status.filter(|_| index == 0) {
            set("status_listen", format!("127.0.0.1:{port}").into());
        }
        private(FILE_NAME, &toml::to_string(&table).unwrap());
        Settings::load(&folder.join(FILE_NAME)).unwrap()
    }

    fn start_operator(&self, index: usize) -> oneshot::Sender<()> {
        let (stop, stopped) = oneshot::channel();
        let settings = self.settings(index);
        tokio::spawn(async move {
            let end = async {
                let _ = stopped.await;
            };
            operator::run::run(settings, end).await.unwrap();
        });
        stop
    }

    /// A helper that gives documents of the own chain for as long as the test runs.
    fn start_helper(&self, index: usize) {
        let listener = UnixListener::bind(self.socket(index)).unwrap();
        let enclave = self.enclave.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A node that goes away while it asks is no matter of the helper's.
                let _ = socket::answer(stream.unwrap(), &*enclave);
            }
        });
    }

    /// The test itself as a node of the roster.
    async fn join(&self, index: usize) -> (Peers, Inbox) {
        let own = identity(index);
        let me = self.roster.members().nth(index).unwrap();
        peers::start(&me.addresses, self.roster.clone(), &self.parameters, &own)
            .await
            .unwrap()
    }

    fn key(&self, index: usize) -> PeerKey {
        identity(index).public()
    }
}

/// Waits for the next question about attestation and answers it.
async fn answer_attestation(
    inbox: &mut Inbox,
    from: PeerKey,
    made: impl FnOnce([u8; 32]) -> Option<Vec<u8>>,
) {
    let heard = async {
        loop {
            match inbox.next().await.unwrap() {
                Heard::Asked(asker, Ask::Attest { nonce }, reply) if asker == from => {
                    return reply.send(Answer::Attestation(made(nonce)));
                }
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.unwrap();
}

/// The status page of the first operator, once it is served.
async fn status(port: u16) -> Option<serde_json::Value> {
    let page = reqwest::get(format!("http://127.0.0.1:{port}/v1/status")).await;
    page.ok()?.json().await.ok()
}

/// Asks until the answer is what `wanted` looks for.
async fn ask_until<T>(
    peers: &Peers,
    peer: PeerKey,
    ask: &Ask,
    mut wanted: impl FnMut(Result<Answer, AskError>) -> Option<T>,
) -> T {
    let asking = async {
        loop {
            if let Some(found) = wanted(peers.ask(peer, ask).await) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap()
}

/// The reason with which key generation messages are refused; panics if they are given.
fn refused(answer: Result<Answer, AskError>) -> Option<String> {
    match answer {
        Ok(Answer::Refused(refusal)) => {
            assert_eq!(refusal.rule, Rule::S12);
            Some(refusal.reason)
        }
        Ok(other) => panic!("answered without an attestation: {other:?}"),
        // Not connected yet.
        Err(_) => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_operator_gets_key_generation_messages_only_with_its_own_valid_document() {
    let ground = Ground::lay_out(2);
    let _operator = ground.start_operator(0);
    let (peers, mut inbox) = ground.join(1).await;
    let (honest, me) = (ground.key(0), ground.key(1));
    let ask = Ask::Dkg {
        context: generate::context(&ground.roster, &ground.parameters),
    };
    let document = |key: PeerKey, nonce| ground.enclave.attest(&Claim { key: key.0, nonce }).ok();

    let expect_refusal = async |part: &str| {
        ask_until(&peers, honest, &ask, |answer| {
            refused(answer).filter(|reason| reason.contains(part))
        })
        .await
    };
    expect_refusal("not verified yet").await;
    answer_attestation(&mut inbox, honest, |_| None).await;
    expect_refusal("has no attestation document").await;
    // Another operator's document, and one for another question.
    answer_attestation(&mut inbox, honest, |nonce| document(honest, nonce)).await;
    expect_refusal("identity key").await;
    answer_attestation(&mut inbox, honest, |_| document(me, [0; 32])).await;
    expect_refusal("nonce").await;

    answer_attestation(&mut inbox, honest, |nonce| document(me, nonce)).await;
    let messages = ask_until(&peers, honest, &ask, |answer| match answer {
        Ok(Answer::Dkg(messages)) => Some(messages),
        _ => None,
    });
    assert!(!messages.await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn key_generation_waits_for_the_operator_without_a_document_and_goes_on_with_one() {
    let mut ground = Ground::lay_out(3);
    let port = *ground.status.insert(free_port());
    let _running: Vec<_> = (0..3).map(|index| ground.start_operator(index)).collect();
    ground.start_helper(0);
    ground.start_helper(1);
    let (coordinator, _inbox) = ground.join(3).await;

    // The first operator sees who has shown what, and misses the third one's messages.
    let waiting = async {
        loop {
            if let Some(status) = status(port).await
                && status["attested"][0]["attested"] == true
                && status["attested"][1]["problem"] == "it has no attestation document"
                && status["key_generation"]["missing"] == serde_json::json!(["node-2"])
            {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let status = tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    assert_eq!(status["attested"][1]["attested"], false);
    assert!(status["attested"][0]["until_ms"].is_u64());
    assert!(status["group_key"].is_null());

    ground.start_helper(2);
    let mut groups = Vec::new();
    for index in 0..3 {
        let group = ask_until(
            &coordinator,
            ground.key(index),
            &Ask::Group,
            |answer| match answer {
                Ok(Answer::Group(group)) => group,
                _ => None,
            },
        );
        groups.push(group.await);
    }
    assert!(groups.iter().all(|group| *group == groups[0]));
}
