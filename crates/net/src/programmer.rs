//! Bringing compiled rules into the kernel. Blocking.

use serde_json::Value as Json;

use crate::cluster::Cluster;
use crate::compile::{Compiled, Site, compile};
use crate::conntrack;
use crate::error::NetError;
use crate::nft;
use crate::ruleset::Ruleset;

/// Knows what is in the kernel, and changes it.
pub struct Programmer {
    table: String,
    /// What the kernel holds, if that is known.
    current: Option<Compiled>,
}

impl Programmer {
    /// For a table of unknown content.
    pub fn new(table: String) -> Self {
        Self { table, current: None }
    }

    /// Makes the kernel hold the rules for a cluster. A table of unknown content is replaced as a whole, in one step.
    pub fn program(&mut self, site: &Site, cluster: &Cluster) -> Result<(), NetError> {
        let next = compile(site, cluster, self.current.as_ref().map(|current| &current.rules));
        let text = match &self.current {
            Some(current) => match next.rules.render_update(&current.rules, &self.table) {
                Some(text) => text,
                None => return Ok(()),
            },
            None => next.rules.render_replacing(&self.table),
        };
        // After a failure the content is unknown: the transaction may have met something that is not as we believe.
        let previous = self.current.take();
        nft::apply(&text)?;
        let flushed = match &previous {
            Some(previous) => conntrack::flush(&conntrack::removed(&previous.udp, &next.udp)),
            None => conntrack::flush_strays(&next.udp),
        };
        self.current = Some(next);
        if let Err(error) = flushed {
            tracing::warn!(error = &error as &dyn std::error::Error, "old UDP flows could not be forgotten");
        }
        Ok(())
    }

    /// Gives up the belief about what the kernel holds.
    pub fn forget(&mut self) {
        self.current = None;
    }

    /// Whether the kernel still holds as many rules and elements as we put there.
    pub fn intact(&self) -> Result<bool, NetError> {
        let Some(current) = &self.current else { return Ok(false) };
        let listing = nft::query(&["-j", "list", "table", "ip", &self.table])?;
        let Some(listing) = listing.and_then(|text| serde_json::from_slice::<Json>(&text).ok()) else {
            return Ok(false);
        };
        Ok(matches(&current.rules, &listing))
    }
}

/// Whether a listing in nft's JSON form has the chains, numbers of rules and numbers of elements of a ruleset.
fn matches(rules: &Ruleset, listing: &Json) -> bool {
    let objects = || listing["nftables"].as_array().into_iter().flatten();
    let of = |kind: &'static str| objects().filter_map(move |object| object.get(kind));
    let rules_in = |chain: &str| of("rule").filter(|rule| rule["chain"] == chain).count();
    let chains = of("chain").filter_map(|chain| chain["name"].as_str());
    if chains.count() != rules.chains.len()
        || rules.chains.iter().any(|(name, chain)| rules_in(name) != chain.rules.len())
    {
        return false;
    }
    rules.sets.iter().filter(|(_, set)| !set.declaration.contains("dynamic")).all(|(name, set)| {
        let found = of(set.keyword).find(|found| found["name"] == **name);
        found.is_some_and(|found| found["elem"].as_array().map_or(0, Vec::len) == set.elements.len())
    })
}
