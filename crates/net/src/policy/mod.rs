//! Network policies: what the API says ([`model`]) and the rules that follow ([`rules`]). Pure.
//!
//! ```text
//!  forward ─► policy_forward ─► egress: client ──goto──► group/out/H ─jump─► out/NAMESPACE/POLICY ─┬► policy_ingress
//!                    │            (not in the map)                    └► drop                       │
//!                    └───────────────────────────────────────────────────────────────────────────┴► policy_ingress
//!  policy_ingress ─► ingress: server ──goto──► group/in/H ─jump─► in/NAMESPACE/POLICY ─► accept
//!                                                         └► drop
//!  input, output (between a pod and its node) ─► egress only
//! ```
//!
//! **A packet is judged by its connection**: the client is the one who opened it, the server the one it reached after
//! address translation, the port the server's; connection tracking knows all three for packets of both directions. So
//! answers need no rule, a service's backend is judged and not its address, and nothing is accepted merely because it is
//! established: a connection that a new policy forbids is cut by the transaction that brings the policy, with no entry to
//! delete. (Deleting entries would let the next packet open the connection anew, in whichever direction it goes.)
//!
//! Pods that the same policies select share a chain, and each distinct selector of peers is one set: a pod that comes or
//! goes changes elements only. Without policies there is nothing of this in the table.
//!
//! What the node sends to its pods is never judged: probes, the API's connections to pods, the ingress proxy, and pods of
//! the host's network, which the rules cannot tell from the node. What a pod sends to its node is: the cluster DNS counts
//! as a pod of `kube-system` with the label `k8s-app=kube-dns`, and other addresses of the node are reached by blocks of
//! addresses. A pod always reaches itself, also through a service.

pub mod model;
pub mod rules;
