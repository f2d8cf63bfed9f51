//! What nodes count of themselves, read from their `/metrics`.

use std::collections::BTreeMap;

use testnet::network::{LocalNetwork, Node};

/// Sums and counts by name, over all nodes.
#[derive(Default)]
pub struct Figures(BTreeMap<String, f64>);

/// The mean of one input or chunk, in seconds.
#[derive(Clone, Copy)]
pub struct Mean {
    /// Elapsed.
    pub wall: f64,
    /// On a CPU.
    pub cpu: f64,
}

impl Figures {
    /// Asks every node.
    pub async fn read(network: &LocalNetwork) -> anyhow::Result<Self> {
        let mut figures = Self::default();
        for node in network.operators.iter().chain([&network.coordinator]) {
            figures.add(node).await?;
        }
        Ok(figures)
    }

    async fn add(&mut self, node: &Node) -> anyhow::Result<()> {
        let url = format!("{}/metrics", node.pages);
        let text = reqwest::get(url).await?.error_for_status()?.text().await?;
        // Those with labels are not wanted.
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, value)) = line.split_once(' ')
                && let Ok(value) = value.parse::<f64>()
            {
                *self.0.entry(name.to_owned()).or_default() += value;
            }
        }
        Ok(())
    }

    fn since(&self, before: &Self, name: &str) -> f64 {
        let of = |figures: &Self| figures.0.get(name).copied().unwrap_or_default();
        of(self) - of(before)
    }

    /// What one item of `work` took on average since `before`, where `items` counts them.
    pub fn mean(&self, before: &Self, work: &str, items: &str) -> Mean {
        let count = self.since(before, items);
        assert!(count > 0.0, "no node counted {items}");
        let per_item = |sum: &str| self.since(before, &format!("{work}_{sum}_sum")) / count;
        Mean {
            wall: per_item("seconds"),
            cpu: per_item("cpu_seconds"),
        }
    }
}
