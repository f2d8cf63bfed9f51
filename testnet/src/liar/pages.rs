//! The operators' status pages: what a lie must leave as it was.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use protocol::identity::PeerKey;
use reqwest::Client;
use serde::Deserialize;

use super::wire::Operator;

/// How long the operators may take to take in blocks.
const CATCH_UP: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// The part of a status page that lies are measured by.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Page {
    /// Hash of what the operator has promised and holds canonical.
    pub state_digest: String,
    /// Promises held (S7).
    pub promises: usize,
    /// Sessions that are open.
    pub sessions: usize,
    /// Sessions with nonces.
    pub nonces: usize,
    /// Height of the chain as taken in.
    pub height: u32,
    /// Why it has stopped signing.
    pub alarm: Option<String>,
    /// Why it is not ready.
    pub not_ready: Option<String>,
}

/// Reads the pages.
pub struct Pages {
    client: Client,
    urls: BTreeMap<PeerKey, String>,
}

impl Pages {
    /// For these operators; each must have a page.
    ///
    /// # Errors
    /// When one has none.
    pub fn new(operators: &[Operator], urls: &BTreeMap<String, String>) -> anyhow::Result<Self> {
        let urls = operators
            .iter()
            .map(|operator| {
                let url = urls
                    .get(&operator.name)
                    .with_context(|| format!("{} has no status page", operator.name))?;
                Ok((operator.key, url.clone()))
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            client: Client::new(),
            urls,
        })
    }

    async fn get(&self, operator: &PeerKey, page: &str) -> anyhow::Result<String> {
        let url = self.urls.get(operator).context("no such operator")?;
        let response = self.client.get(format!("{url}{page}")).send().await?;
        Ok(response.error_for_status()?.text().await?)
    }

    /// One operator's status.
    ///
    /// # Errors
    /// When the page can't be read: the operator may have died of the lie.
    pub async fn read(&self, operator: &PeerKey) -> anyhow::Result<Page> {
        Ok(serde_json::from_str(
            &self.get(operator, "/v1/status").await?,
        )?)
    }

    /// How often an operator has refused anything under a rule.
    ///
    /// # Errors
    /// When the page can't be read.
    pub async fn refusals(&self, operator: &PeerKey, rule: &str) -> anyhow::Result<u64> {
        let metrics = self.get(operator, "/metrics").await?;
        let name = format!("operator_refusals{{rule=\"{rule}\"}} ");
        let count = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name.as_str()));
        Ok(count.map_or(Ok(0), |count| count.trim().parse())?)
    }

    /// Waits until every operator has taken in the chain up to a height and is ready.
    ///
    /// # Errors
    /// When one of them has not in time, or has stopped.
    pub async fn until_height(&self, height: u32) -> anyhow::Result<()> {
        for operator in self.urls.keys() {
            self.until(operator, "the chain's tip", |page| {
                page.height >= height && page.not_ready.is_none()
            })
            .await?;
        }
        Ok(())
    }

    /// Waits for a page to show something.
    ///
    /// # Errors
    /// When it does not in time, or the operator has stopped.
    pub async fn until(
        &self,
        operator: &PeerKey,
        what: &str,
        check: impl Fn(&Page) -> bool,
    ) -> anyhow::Result<Page> {
        let start = tokio::time::Instant::now();
        loop {
            let page = self.read(operator).await?;
            if check(&page) {
                return Ok(page);
            }
            ensure!(page.alarm.is_none(), "{operator} raises the alarm");
            ensure!(
                start.elapsed() < CATCH_UP,
                "{operator} does not show {what}: {page:?}"
            );
            tokio::time::sleep(POLL).await;
        }
    }
}
