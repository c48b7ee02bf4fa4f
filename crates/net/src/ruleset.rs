//! A set of nftables rules as data, the difference of two, and its text for `nft`.
//!
//! What changes often (frontends, backends) is an element of a map, so that one changed endpoint is one changed element;
//! chains change only with the shape of the cluster.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The protocol of a port's `protocol` field; absent means TCP.
    pub fn parse(name: Option<&str>) -> Self {
        match name {
            Some("UDP") => Self::Udp,
            Some("SCTP") => Self::Sctp,
            _ => Self::Tcp,
        }
    }

    /// Lower case, as in rules and DNS names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The key of an element. A set or map holds keys of one variant only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// An address a service is reached at.
    Frontend(Ipv4Addr, Protocol, u16),
    /// One of its backends, by number.
    FrontendSlot(Ipv4Addr, Protocol, u16, u32),
    /// A port of the node, on whichever address.
    NodePort(Protocol, u16),
    /// One of its backends, by number.
    NodePortSlot(Protocol, u16, u32),
    /// A source and a destination.
    Pair(Ipv4Addr, Ipv4Addr),
    /// An address.
    Address(Ipv4Addr),
    /// An address and a port of a protocol that the set's name tells.
    AddressPort(Ipv4Addr, u16),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frontend(address, protocol, port) => write!(f, "{address} . {protocol} . {port}"),
            Self::FrontendSlot(address, protocol, port, slot) => write!(f, "{address} . {protocol} . {port} . {slot}"),
            Self::NodePort(protocol, port) => write!(f, "{protocol} . {port}"),
            Self::NodePortSlot(protocol, port, slot) => write!(f, "{protocol} . {port} . {slot}"),
            Self::Pair(from, to) => write!(f, "{from} . {to}"),
            Self::Address(address) => write!(f, "{address}"),
            Self::AddressPort(address, port) => write!(f, "{address} . {port}"),
        }
    }
}

/// What an element maps to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing: the element of a set.
    None,
    /// The rules of a chain decide.
    Goto(Arc<str>),
    /// An address and a port.
    Backend(Ipv4Addr, u16),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Goto(chain) => write!(f, " : goto {chain}"),
            Self::Backend(address, port) => write!(f, " : {address} . {port}"),
        }
    }
}

/// A named set or map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// `set` or `map`.
    pub keyword: &'static str,
    /// Its type and flags, as `nft` wants them between the braces.
    pub declaration: String,
    /// Its elements; those that packets add (client affinity) are not among them.
    pub elements: BTreeMap<Key, Value>,
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where packets enter it, for a base chain.
    pub hook: Option<&'static str>,
    /// One rule each.
    pub rules: Vec<String>,
    /// `nft` cannot add these rules to a table that exists: reading a map of addresses and ports back from the kernel, it
    /// mistakes its type (seen with 1.0.6).
    pub with_table: bool,
}

/// All rules of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Sets and maps by name.
    pub sets: BTreeMap<Arc<str>, Set>,
    /// Chains by name.
    pub chains: BTreeMap<Arc<str>, Chain>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the thing's name and content")]
pub enum Change {
    AddSet { name: Arc<str>, keyword: &'static str, declaration: String },
    AddChain { name: Arc<str>, hook: Option<&'static str>, with_table: bool },
    DeleteElements { set: Arc<str>, keys: Vec<Key> },
    AddElements { set: Arc<str>, elements: Vec<(Key, Value)> },
    FlushChain { name: Arc<str> },
    AddRules { chain: Arc<str>, rules: Vec<String> },
    DeleteChain { name: Arc<str> },
    DeleteSet { name: Arc<str>, keyword: &'static str },
}

/// Changes that take effect together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction(pub Vec<Change>);

/// The changes that turn one ruleset into another, in an order in which nothing is used before it exists or after it is gone.
pub fn diff(from: &Ruleset, to: &Ruleset) -> Transaction {
    let mut out = Transaction::default();
    let same_set = |name: &Arc<str>, set: &Set| {
        from.sets.get(name).filter(|old| old.declaration == set.declaration && old.keyword == set.keyword)
    };
    let same_chain = |name: &Arc<str>, chain: &Chain| from.chains.get(name).filter(|old| old.hook == chain.hook);

    // A chain or set that changes its nature goes and comes back; all that refers to one is in chains, so these are emptied first.
    let gone_chains: Vec<_> =
        from.chains.iter().filter(|(name, old)| to.chains.get(*name).is_none_or(|new| new.hook != old.hook)).collect();
    let gone_sets: Vec<_> = from
        .sets
        .iter()
        .filter(|(name, old)| {
            to.sets.get(*name).is_none_or(|new| new.declaration != old.declaration || new.keyword != old.keyword)
        })
        .collect();
    for (name, set) in &to.sets {
        if let Some(old) = same_set(name, set) {
            let keys: Vec<Key> = old
                .elements
                .iter()
                .filter(|(key, value)| set.elements.get(key) != Some(value))
                .map(|(key, _)| *key)
                .collect();
            out.push_some(!keys.is_empty(), || Change::DeleteElements { set: name.clone(), keys });
        }
    }
    for (name, set) in &gone_sets {
        out.push_some(!set.elements.is_empty(), || Change::DeleteElements {
            set: (*name).clone(),
            keys: set.elements.keys().copied().collect(),
        });
    }
    for (name, old) in &from.chains {
        let stays = to.chains.get(name).is_some_and(|new| new == old);
        out.push_some(!stays && !old.rules.is_empty(), || Change::FlushChain { name: name.clone() });
    }
    out.0.extend(gone_chains.iter().map(|(name, _)| Change::DeleteChain { name: (*name).clone() }));
    out.0.extend(gone_sets.iter().map(|(name, set)| Change::DeleteSet { name: (*name).clone(), keyword: set.keyword }));

    for (name, set) in to.sets.iter().filter(|(name, set)| same_set(name, set).is_none()) {
        out.0.push(Change::AddSet { name: name.clone(), keyword: set.keyword, declaration: set.declaration.clone() });
    }
    for (name, chain) in to.chains.iter().filter(|(name, chain)| same_chain(name, chain).is_none()) {
        out.0.push(Change::AddChain { name: name.clone(), hook: chain.hook, with_table: chain.with_table });
    }
    for (name, chain) in &to.chains {
        let unchanged = same_chain(name, chain).is_some_and(|old| old == chain);
        out.push_some(!unchanged && !chain.rules.is_empty(), || Change::AddRules {
            chain: name.clone(),
            rules: chain.rules.clone(),
        });
    }
    for (name, set) in &to.sets {
        let old = same_set(name, set);
        let new = |key: &Key, value: &Value| old.is_none_or(|old| old.elements.get(key) != Some(value));
        let elements: Vec<_> =
            set.elements.iter().filter(|(key, value)| new(key, value)).map(|(k, v)| (*k, v.clone())).collect();
        out.push_some(!elements.is_empty(), || Change::AddElements { set: name.clone(), elements });
    }
    out
}

impl Transaction {
    fn push_some(&mut self, wanted: bool, change: impl FnOnce() -> Change) {
        if wanted {
            self.0.push(change());
        }
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many elements come or go.
    pub fn element_count(&self) -> usize {
        let count = |change: &Change| match change {
            Change::DeleteElements { keys, .. } => keys.len(),
            Change::AddElements { elements, .. } => elements.len(),
            _ => 0,
        };
        self.0.iter().map(count).sum()
    }

    /// The transaction as input of `nft -f`, on an existing table.
    pub fn render(&self, table: &str) -> String {
        let mut out = String::new();
        self.write(table, &mut out).unwrap_or(()); // writing to a String cannot fail
        out
    }

    fn write(&self, table: &str, out: &mut String) -> fmt::Result {
        for change in &self.0 {
            match change {
                Change::AddSet { name, keyword, declaration } => {
                    writeln!(out, "add {keyword} ip {table} {name} {{ {declaration} }}")?
                }
                Change::AddChain { name, hook: None, .. } => writeln!(out, "add chain ip {table} {name}")?,
                Change::AddChain { name, hook: Some(hook), .. } => {
                    writeln!(out, "add chain ip {table} {name} {{ {hook} }}")?
                }
                Change::DeleteElements { set, keys } => {
                    write!(out, "delete element ip {table} {set} {{ ")?;
                    list(out, keys.iter())?;
                }
                Change::AddElements { set, elements } => {
                    write!(out, "add element ip {table} {set} {{ ")?;
                    list(out, elements.iter().map(|(key, value)| Element(key, value)))?;
                }
                Change::FlushChain { name } => writeln!(out, "flush chain ip {table} {name}")?,
                Change::AddRules { chain, rules } => {
                    for rule in rules {
                        writeln!(out, "add rule ip {table} {chain} {rule}")?;
                    }
                }
                Change::DeleteChain { name } => writeln!(out, "delete chain ip {table} {name}")?,
                Change::DeleteSet { name, keyword } => writeln!(out, "delete {keyword} ip {table} {name}")?,
            }
        }
        Ok(())
    }
}

struct Element<'a>(&'a Key, &'a Value);

impl fmt::Display for Element<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0, self.1)
    }
}

fn list(out: &mut String, items: impl Iterator<Item = impl fmt::Display>) -> fmt::Result {
    for (index, item) in items.enumerate() {
        write!(out, "{}{item}", if index == 0 { "" } else { ", " })?;
    }
    out.write_str(" }\n")
}

impl Ruleset {
    /// Input of `nft -f` that turns a table with the rules `from` into one with these, element by element where that is
    /// possible; nothing if they are the same.
    pub fn render_update(&self, from: &Self, table: &str) -> Option<String> {
        let change = diff(from, self);
        let whole = change.0.iter().any(|change| match change {
            Change::AddRules { chain, .. } => self.chains.get(chain).is_some_and(|chain| chain.with_table),
            _ => false,
        });
        match (change.is_empty(), whole) {
            (true, _) => None,
            (false, true) => Some(self.render_replacing(table)),
            (false, false) => Some(change.render(table)),
        }
    }

    /// Input of `nft -f` that makes the table hold exactly these rules, whatever it held, in one step.
    pub fn render_replacing(&self, table: &str) -> String {
        let head = format!("add table ip {table}\ndelete table ip {table}\nadd table ip {table}\n");
        head + &diff(&Self::default(), self).render(table)
    }

    /// Carries changes out on the model; the mirror of what the kernel does.
    pub fn apply(&mut self, transaction: &Transaction) {
        for change in &transaction.0 {
            self.apply_one(change);
        }
    }

    fn apply_one(&mut self, change: &Change) {
        match change.clone() {
            Change::AddSet { name, keyword, declaration } => {
                self.sets.insert(name, Set { keyword, declaration, elements: BTreeMap::new() });
            }
            Change::AddChain { name, hook, with_table } => {
                self.chains.insert(name, Chain { hook, rules: Vec::new(), with_table });
            }
            Change::DeleteElements { set, keys } => {
                if let Some(set) = self.sets.get_mut(&set) {
                    set.elements.retain(|key, _| keys.binary_search(key).is_err());
                }
            }
            Change::AddElements { set, elements } => {
                if let Some(set) = self.sets.get_mut(&set) {
                    set.elements.extend(elements);
                }
            }
            Change::FlushChain { name } => {
                if let Some(chain) = self.chains.get_mut(&name) {
                    chain.rules.clear();
                }
            }
            Change::AddRules { chain, rules } => {
                if let Some(chain) = self.chains.get_mut(&chain) {
                    chain.rules.extend(rules);
                }
            }
            Change::DeleteChain { name } => {
                self.chains.remove(&name);
            }
            Change::DeleteSet { name, .. } => {
                self.sets.remove(&name);
            }
        }
    }
}
