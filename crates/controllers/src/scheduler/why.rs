//! Why a pod found no node, in Kubernetes' words.

use std::collections::BTreeMap;
use std::fmt;

use super::node::Shortage;

/// What kept a pod off one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Cordoned.
    Unschedulable,
    /// A taint.
    Taint,
    /// Node selector or node affinity.
    NodeAffinity,
    /// A host port is taken.
    Ports,
    /// Something is short.
    Short(Shortage),
    /// Another pod has a claim that only one pod may have.
    VolumeTaken,
    /// A claim is bound to a volume that is not there.
    VolumeGone,
    /// A volume cannot be reached from the node.
    VolumeAffinity,
    /// No volume suits a claim, and none can be made.
    VolumeMissing,
    /// The node lacks the label of a spread constraint.
    SpreadLabel,
    /// A spread constraint.
    Spread,
    /// Pod affinity.
    Affinity,
    /// The pod's anti-affinity.
    AntiAffinity,
    /// Another pod's anti-affinity.
    ExistingAntiAffinity,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unschedulable => "node(s) were unschedulable",
            Self::Taint => "node(s) had untolerated taint(s)",
            Self::NodeAffinity => "node(s) didn't match Pod's node affinity/selector",
            Self::Ports => "node(s) didn't have free ports for the requested pod ports",
            Self::Short(Shortage::Pods) => "Too many pods",
            Self::Short(Shortage::Resource(name)) => return write!(f, "Insufficient {name}"),
            Self::VolumeTaken => {
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
            }
            Self::VolumeGone => "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
            Self::VolumeAffinity => "node(s) didn't match PersistentVolume's node affinity",
            Self::VolumeMissing => "node(s) didn't find available persistent volumes to bind",
            Self::SpreadLabel => "node(s) didn't match pod topology spread constraints (missing required label)",
            Self::Spread => "node(s) didn't match pod topology spread constraints",
            Self::Affinity => "node(s) didn't match pod affinity rules",
            Self::AntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Self::ExistingAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules",
        })
    }
}

impl Reason {
    /// Whether removing other pods could help.
    pub fn is_curable(&self) -> bool {
        matches!(self, Self::Ports | Self::Short(_) | Self::Spread | Self::AntiAffinity | Self::ExistingAntiAffinity)
    }
}

/// A pod fits no node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unfit {
    nodes: usize,
    curable: usize,
    reasons: BTreeMap<String, usize>,
    /// Said instead of reasons: what keeps the pod off every node.
    refusal: Option<String>,
}

impl Unfit {
    /// Starts the account for a number of nodes.
    pub fn of(nodes: usize) -> Self {
        Self { nodes, ..Self::default() }
    }

    /// The pod was refused before any node was looked at.
    pub fn refused(nodes: usize, why: String) -> Self {
        Self { nodes, refusal: Some(why), ..Self::default() }
    }

    /// Adds what kept the pod off one node.
    pub fn add(&mut self, reasons: &[Reason]) {
        self.curable += usize::from(reasons.iter().all(Reason::is_curable));
        for reason in reasons {
            *self.reasons.entry(reason.to_string()).or_default() += 1;
        }
    }
}

impl Unfit {
    /// The whole message, given why no room could be made: a text of its own, or none if it is only that nothing helps.
    pub fn with_preemption(&self, refused: &str) -> String {
        if self.nodes == 0 {
            return self.to_string();
        }
        if !refused.is_empty() {
            return format!("{self} no new claims to deallocate, preemption: {refused}");
        }
        let mut outlook = Vec::new();
        if self.curable > 0 {
            outlook.push(format!("{} No preemption victims found for incoming pod", self.curable));
        }
        if self.nodes > self.curable {
            outlook.push(format!("{} Preemption is not helpful for scheduling", self.nodes - self.curable));
        }
        outlook.sort();
        let outlook = outlook.join(", ");
        format!("{self} no new claims to deallocate, preemption: 0/{} nodes are available: {outlook}.", self.nodes)
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        if let Some(refusal) = &self.refusal {
            return write!(f, "0/{} nodes are available: {refusal}.", self.nodes);
        }
        let mut counted: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        counted.sort();
        write!(f, "0/{} nodes are available: {}.", self.nodes, counted.join(", "))
    }
}
