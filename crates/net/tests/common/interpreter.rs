//! What compiled policy rules do with a connection: as much of nftables as they use, and a panic for the rest.

use std::net::Ipv4Addr;

use mycelium_net::ruleset::{Key, Protocol, Ruleset, Value};

#[derive(Clone, Debug)]
pub struct Connection {
    pub client: Ipv4Addr,
    pub server: Ipv4Addr,
    pub protocol: Protocol,
    pub port: u16,
}

enum Verdict {
    Accept,
    Drop,
    /// The chain came to its end.
    Return,
}

/// Whether a packet of a connection gets through the chain of a hook.
pub fn allows(rules: &Ruleset, hook: &str, connection: &Connection) -> bool {
    let there = rules.chains.contains_key(hook);
    !there || !matches!(run(rules, hook, connection), Verdict::Drop)
}

fn run(rules: &Ruleset, chain: &str, c: &Connection) -> Verdict {
    for line in &rules.chains[chain].rules {
        match step(rules, line, c) {
            None | Some((false, Verdict::Return)) => {}
            Some((_, verdict)) => return verdict,
        }
    }
    Verdict::Return
}

/// The verdict of a rule that matches, and whether the chain ends with it.
fn step(rules: &Ruleset, line: &str, c: &Connection) -> Option<(bool, Verdict)> {
    let mut rest = line;
    loop {
        rest = rest.trim_start();
        if let Some(chain) = rest.strip_prefix("goto ") {
            return Some((true, run(rules, chain, c)));
        }
        if let Some(chain) = rest.strip_prefix("jump ") {
            return Some((false, run(rules, chain, c)));
        }
        match rest {
            "accept" => return Some((true, Verdict::Accept)),
            "drop" => return Some((true, Verdict::Drop)),
            // These packets belong to a connection, and are not errors.
            _ if rest.starts_with("ct state invalid,untracked ") || rest.starts_with("ct state related ") => {
                return None;
            }
            _ => {}
        }
        if let Some(after) = ["iifname ", "oifname "].iter().find_map(|prefix| rest.strip_prefix(prefix)) {
            rest = after.split_once(' ')?.1; // the hooks are told apart by who calls
        } else if let Some(after) = rest.strip_prefix("meta l4proto ") {
            let (protocol, after) = after.split_once(' ')?;
            if protocol != c.protocol.as_str() {
                return None;
            }
            rest = after;
        } else {
            let (fields, after) = fields(rest, c);
            match condition(rules, &fields, after.trim_start())? {
                Next::Rest(after) => rest = after,
                Next::Chain(chain) => return Some((true, run(rules, &chain, c))),
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Field {
    Address(Ipv4Addr),
    Port(u16),
}

fn fields<'a>(text: &'a str, c: &Connection) -> (Vec<Field>, &'a str) {
    let (mut found, mut rest) = (Vec::new(), text);
    loop {
        let known = [
            ("ct original ip saddr", Field::Address(c.client)),
            ("ct reply ip saddr", Field::Address(c.server)),
            ("ct reply proto-src", Field::Port(c.port)),
        ];
        let Some((field, after)) = known.iter().find_map(|(name, field)| Some((*field, rest.strip_prefix(name)?)))
        else {
            panic!("no {rest:?} here");
        };
        found.push(field);
        match after.strip_prefix(" . ") {
            Some(after) => rest = after,
            None => return (found, after),
        }
    }
}

enum Next<'a> {
    Rest(&'a str),
    Chain(String),
}

fn condition<'a>(rules: &Ruleset, fields: &[Field], text: &'a str) -> Option<Next<'a>> {
    if let Some(map) = text.strip_prefix("vmap @") {
        return match rules.sets[map].elements.get(&key(fields)) {
            Some(Value::Goto(chain)) => Some(Next::Chain(chain.to_string())),
            _ => None,
        };
    }
    if let Some(named) = text.strip_prefix('@') {
        let (set, after) = named.split_once(' ')?;
        return rules.sets[set].elements.contains_key(&key(fields)).then_some(Next::Rest(after));
    }
    let (negated, text) = text.strip_prefix("!= ").map_or((false, text), |text| (true, text));
    let (list, after) = match text.strip_prefix("{ ") {
        Some(list) => list.split_once(" } ")?,
        None => text.split_once(' ')?,
    };
    let inside = list.split(", ").any(|range| contains(range, fields[0]));
    (inside != negated).then_some(Next::Rest(after))
}

fn key(fields: &[Field]) -> Key {
    match fields {
        [Field::Address(a)] => Key::Address(*a),
        [Field::Address(a), Field::Address(b)] => Key::Pair(*a, *b),
        [Field::Address(a), Field::Port(p)] => Key::AddressPort(*a, *p),
        _ => panic!("no such key"),
    }
}

fn contains(range: &str, field: Field) -> bool {
    match field {
        Field::Address(ip) if range.contains('/') => range.parse::<ipnet::Ipv4Net>().unwrap().contains(&ip),
        Field::Address(ip) => {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            (first.parse::<Ipv4Addr>().unwrap()..=last.parse().unwrap()).contains(&ip)
        }
        Field::Port(port) => {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            (first.parse::<u16>().unwrap()..=last.parse().unwrap()).contains(&port)
        }
    }
}
