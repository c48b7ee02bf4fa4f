//! Which pod has which address. What is in use is known from the machine's interfaces; nothing is written to disk.
//!
//! Addresses are handed out in a circle, so that one just freed, which peers may still remember, comes back last.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::config::nth;

/// The range's own address and the node's are not for pods.
const FIRST: u32 = 2;

/// The pod range is exhausted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {0} addresses of the pod range {1} are in use: choose a larger one with --pod-cidr")]
pub struct Exhausted(usize, Ipv4Net);

/// The addresses of one pod range.
#[derive(Debug)]
pub struct Ipam {
    range: Ipv4Net,
    /// Position to pod.
    used: BTreeMap<u32, String>,
    next: u32,
}

impl Ipam {
    /// A range with the addresses already in use, by position.
    pub fn new(range: Ipv4Net, used: BTreeMap<u32, String>) -> Self {
        let next = used.keys().next_back().map_or(FIRST, |last| last + 1);
        Self { range, used, next }
    }

    /// The position of the pod's address, if it has one.
    pub fn find(&self, pod: &str) -> Option<u32> {
        self.used.iter().find(|(_, owner)| *owner == pod).map(|(offset, _)| *offset)
    }

    /// The address at a position.
    pub fn address(&self, offset: u32) -> Ipv4Addr {
        nth(self.range, offset)
    }

    /// The pod's address: the one it has, or a free one.
    pub fn allocate(&mut self, pod: &str) -> Result<u32, Exhausted> {
        if let Some(offset) = self.find(pod) {
            return Ok(offset);
        }
        // The last address is the range's broadcast address.
        let end = (1u32 << (32 - u32::from(self.range.prefix_len()))) - 1;
        let offset = (self.next.clamp(FIRST, end)..end)
            .chain(FIRST..end)
            .find(|offset| !self.used.contains_key(offset))
            .ok_or(Exhausted(self.used.len(), self.range))?;
        self.used.insert(offset, pod.to_owned());
        self.next = offset + 1;
        Ok(offset)
    }

    /// Gives the pod's address back.
    pub fn release(&mut self, pod: &str) -> Option<u32> {
        let offset = self.find(pod)?;
        self.used.remove(&offset);
        Some(offset)
    }

    /// Pods and their addresses.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Ipv4Addr)> {
        self.used.iter().map(|(offset, pod)| (pod.as_str(), self.address(*offset)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipam(used: &[(u32, &str)]) -> Ipam {
        let used = used.iter().map(|(offset, pod)| (*offset, (*pod).to_owned())).collect();
        Ipam::new("10.1.0.0/28".parse().unwrap(), used)
    }

    #[test]
    fn a_freed_address_comes_back_last() {
        let mut ipam = ipam(&[]);
        assert_eq!(ipam.allocate("a"), Ok(2));
        assert_eq!(ipam.allocate("b"), Ok(3));
        assert_eq!(ipam.release("a"), Some(2));
        let later: Vec<u32> = ('c'..='n').map(|pod| ipam.allocate(&pod.to_string()).unwrap()).collect();
        assert_eq!(later, [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 2]);
        assert!(ipam.allocate("o").unwrap_err().to_string().contains("--pod-cidr"));
    }

    #[test]
    fn what_is_in_use_is_adopted() {
        let mut ipam = ipam(&[(5, "a")]);
        assert_eq!(ipam.allocate("a"), Ok(5));
        assert_eq!(ipam.allocate("b"), Ok(6));
        assert_eq!(ipam.iter().count(), 2);
    }
}
