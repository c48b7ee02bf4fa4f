//! The model check: an exhaustive search of the protocol core in small groups. Anybody may stand for election and any
//! peer may be thought lost, or stalled, at any moment; messages, epochs and syncs overtake each other, arrive twice or never;
//! members crash and come back with their disk alone. Times do not exist, so nothing can depend on them.
//!
//! What is bounded is how often each of this happens ([`Budget`]), and the length of a run
//! (`MYCELIUM_MODEL_DEPTH=30 cargo test -p mycelium-endophyte model --release` looks further).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stateright::{Checker, Expectation, Model, Property};

use super::core::{Core, Data, Peer, Reign, Role};
use super::election::How;
use super::message::Message;
use super::mutation::{Fault, Faults};
use super::output::Output;
use super::types::{Alone, Config, Durable, Name, Policy, Position, Proposal, Rules, Version};

/// How often something may happen in a run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Budget {
    seals: u8,
    elections: u8,
    crashes: u8,
    losses: u8,
    duplicates: u8,
    migrations: u8,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Load {
    Message(Vec<u8>),
    Epoch(Position),
    Sync(Position),
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Packet {
    from: usize,
    to: usize,
    /// A receiver in a later term than this does nothing with it.
    term: u64,
    load: Load,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    members: Vec<Option<Core>>,
    disks: Vec<Durable>,
    network: BTreeSet<Packet>,
    /// The history: where each term began, and the last position that each term released.
    bases: BTreeMap<u64, Position>,
    released: BTreeMap<u64, Position>,
    /// Copies that were asked for: by whom, to whom. Each is whole with an epoch that is sealed later.
    syncs: BTreeSet<(usize, usize)>,
    /// Who was elected in each term; `twice` when there were two.
    elected: BTreeMap<u64, usize>,
    twice: bool,
    left: Budget,
}

#[derive(Clone, PartialEq, Debug)]
enum Action {
    Deliver(Packet),
    DeliverAgain(Packet),
    Seal(usize),
    /// Seals the epoch with which a copy is whole.
    Copy(usize, usize),
    Stand(usize),
    Crash(usize),
    Restart(usize),
    Lose(usize, usize),
    Stall(usize, usize),
    Pledge(usize, usize),
    HandOver(usize, usize),
}

#[derive(Clone)]
struct Group {
    backups: usize,
    witnesses: usize,
    rules: Rules,
    how: How,
    budget: Budget,
    fault: Option<Fault>,
}

impl Group {
    fn names(&self) -> Vec<Name> {
        let backups = (0..=self.backups).map(|at| Name::from(["a", "b", "c", "d"][at]));
        backups.chain((0..self.witnesses).map(|at| Name::from(["w", "x"][at]))).collect()
    }

    fn config(&self) -> Config {
        let names = self.names();
        let base = Position::new(1, 0);
        let (data, witnesses) = names.split_at(self.backups + 1);
        Config {
            version: Version { term: 1, number: 0 },
            primary: names[0].clone(),
            data: data.iter().cloned().collect(),
            witnesses: witnesses.iter().cloned().collect(),
            voters: names.iter().cloned().collect(),
            holders: data[1..].iter().cloned().collect(),
            rules: self.rules,
            base,
        }
    }
}

impl Model for Group {
    type State = World;
    type Action = Action;

    /// The group is formed: the first member runs the VM and everyone is in sync.
    fn init_states(&self) -> Vec<World> {
        let config = self.config();
        let names = self.names();
        let proposal = Arc::new(Proposal { config: config.clone(), under: Vec::new(), settled: true });
        let disk = Durable { term: 1, vote: Some(names[0].clone()), proposal: Some(proposal), pledge: None };
        let faults = Faults::only(self.fault);
        let mut members = Vec::new();
        for name in &names {
            let held = config.holders.contains(name).then_some(config.base);
            let mut core = Core::new(name.clone(), disk.clone(), held, faults);
            core.role = Role::Follower { primary: Some(names[0].clone()) };
            members.push(Some(core));
        }
        let peer = |name: &Name| Peer {
            accepted: config.version,
            held: config.holders.contains(name).then_some(config.base),
            ..Peer::default()
        };
        let reign = Reign {
            under: vec![config.quorum()],
            peers: names[1..].iter().map(|name| (name.clone(), peer(name))).collect(),
            settled: Some(config.clone()),
            released: Some(0),
            next: 1,
            ..Reign::default()
        };
        let first = members[0].as_mut().unwrap();
        first.role = Role::Primary(reign);
        first.data = Data::Live { reign: 1, sealed: config.base, released: 0 };
        vec![World {
            disks: vec![disk; names.len()],
            members,
            network: BTreeSet::new(),
            bases: BTreeMap::from([(1, config.base)]),
            released: BTreeMap::new(),
            syncs: BTreeSet::new(),
            elected: BTreeMap::from([(1, 0)]),
            twice: false,
            left: self.budget,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let left = &world.left;
        for packet in world.network.iter().filter(|packet| world.members[packet.to].is_some()) {
            actions.push(Action::Deliver(packet.clone()));
            if left.duplicates > 0 {
                actions.push(Action::DeliverAgain(packet.clone()));
            }
        }
        actions.extend(world.syncs.iter().map(|(at, to)| Action::Copy(*at, *to)));
        for (at, member) in world.members.iter().enumerate() {
            let Some(core) = member else {
                actions.push(Action::Restart(at));
                continue;
            };
            if left.crashes > 0 {
                actions.push(Action::Crash(at));
            }
            if left.seals > 0 && core.is_primary() {
                actions.push(Action::Seal(at));
            }
            if left.elections > 0 && at <= self.backups {
                actions.push(Action::Stand(at));
            }
            let Role::Primary(reign) = &core.role else { continue };
            for (other, name) in self.names().iter().enumerate().filter(|(other, _)| *other != at) {
                if left.losses > 0 && reign.peers.get(name).is_none_or(|peer| !peer.lost) {
                    actions.push(Action::Lose(at, other));
                }
                if left.losses > 0 && core.waited_for().contains_key(name) {
                    actions.push(Action::Stall(at, other));
                }
                if left.migrations > 0 && core.can_hand_over(name) {
                    actions.push(Action::Pledge(at, other));
                    actions.push(Action::HandOver(at, other));
                }
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        let mut out = Vec::new();
        let actor = match action {
            Action::Deliver(packet) => {
                next.network.remove(&packet);
                next.deliver(&self.names(), packet, &mut out)
            }
            Action::DeliverAgain(packet) => {
                next.left.duplicates -= 1;
                next.deliver(&self.names(), packet, &mut out)
            }
            Action::Seal(at) => {
                next.left.seals -= 1;
                next.seal(at, self.backups, None, &mut out)
            }
            Action::Copy(at, to) => {
                next.syncs.remove(&(at, to));
                next.seal(at, self.backups, Some(to), &mut out)
            }
            Action::Stand(at) => {
                next.left.elections -= 1;
                next.members[at].as_mut()?.campaign(self.how, &mut out);
                at
            }
            Action::Crash(at) => {
                next.left.crashes -= 1;
                next.members[at] = None;
                at
            }
            Action::Restart(at) => {
                let faults = Faults::only(self.fault);
                let mut core = Core::new(self.names()[at].clone(), next.disks[at].clone(), None, faults);
                // It is heard of again when a heartbeat of its new life was answered.
                core.heard(u64::from(self.budget.crashes - next.left.crashes));
                next.members[at] = Some(core);
                at
            }
            Action::Lose(at, other) => {
                next.left.losses -= 1;
                next.members[at].as_mut()?.peer_lost(&self.names()[other], &mut out);
                at
            }
            Action::Stall(at, other) => {
                next.left.losses -= 1;
                next.members[at].as_mut()?.peer_stalls(&self.names()[other], &mut out);
                at
            }
            Action::Pledge(at, other) => {
                next.members[at].as_mut()?.pledge(&self.names()[other], &mut out);
                at
            }
            Action::HandOver(at, other) => {
                next.left.migrations -= 1;
                next.members[at].as_mut()?.hand_over(&self.names()[other], &mut out);
                at
            }
        };
        next.carry_out(&self.names(), actor, out);
        let World { syncs, members, .. } = &mut next;
        syncs.retain(|(at, _)| members[*at].as_ref().is_some_and(Core::is_primary));
        if self.fault.is_none() {
            let World { network, disks, .. } = &mut next;
            network.retain(|packet| packet.term >= disks[packet.to].term);
        }
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property { expectation: Expectation::Always, name: ONE_HISTORY, condition: |_, world| world.one_history() },
            Property { expectation: Expectation::Always, name: KEPT, condition: |_, world| world.kept() },
            Property { expectation: Expectation::Always, name: ONE_PRIMARY, condition: |_, world| !world.twice },
            Property::sometimes("a successor releases", |_: &Self, world: &World| {
                world.released.keys().any(|term| *term > 1)
            }),
            Property::sometimes("a returned primary is a holder", |_: &Self, world: &World| {
                world.primaries().any(|reign| reign.settled.iter().any(|config| config.holders.contains("a")))
            }),
            Property::sometimes("a primary goes on with fewer", |group: &Self, world: &World| {
                world.primaries().any(|reign| {
                    let fewer = |config: &Config| config.holders.len() < group.backups;
                    reign
                        .settled
                        .as_ref()
                        .is_some_and(|config| fewer(config) && reign.released > Some(config.base.epoch))
                })
            }),
        ]
    }
}

const ONE_HISTORY: &str = "all that was released lies on one history";
const ONE_PRIMARY: &str = "a term has one primary";
const KEPT: &str = "each term begins with all that was released before it";

impl World {
    fn primaries(&self) -> impl Iterator<Item = &Reign> {
        self.members.iter().flatten().filter_map(|core| match &core.role {
            Role::Primary(reign) => Some(reign),
            _ => None,
        })
    }

    fn deliver(&mut self, names: &[Name], packet: Packet, out: &mut Vec<Output>) -> usize {
        let Some(core) = self.members[packet.to].as_mut() else { return packet.to };
        match packet.load {
            Load::Message(bytes) => core.receive(&names[packet.from], Message::decode(&bytes).unwrap(), out),
            Load::Epoch(at) => core.arrived(at, out),
            Load::Sync(at) => core.synced(at, out),
        }
        packet.to
    }

    fn seal(&mut self, at: usize, backups: usize, copied: Option<usize>, out: &mut Vec<Output>) -> usize {
        let Some(core) = self.members[at].as_mut() else { return at };
        let Data::Live { reign, sealed, .. } = core.data else { return at };
        core.sealed(sealed.epoch + 1, out);
        let position = Position::new(reign, sealed.epoch + 1);
        for to in (0..=backups).filter(|to| *to != at) {
            let load = if copied == Some(to) { Load::Sync(position) } else { Load::Epoch(position) };
            self.network.insert(Packet { from: at, to, term: reign, load });
        }
        at
    }

    fn carry_out(&mut self, names: &[Name], actor: usize, out: Vec<Output>) {
        let index = |name: &Name| names.iter().position(|other| other == name).unwrap();
        if let Some(core) = &self.members[actor]
            && let (true, Data::Live { reign, .. }, Some(proposal)) = (core.is_primary(), &core.data, core.proposal())
        {
            self.bases.insert(*reign, proposal.config.base);
            self.twice |= *self.elected.entry(*reign).or_insert(actor) != actor;
        }
        let live = self.members[actor].as_ref().map(|core| core.data.clone());
        for output in out {
            match (output, &live) {
                (Output::Persist(durable), _) => self.disks[actor] = durable,
                (Output::Send { to, message }, _) => {
                    let term = match message {
                        Message::Report { term, .. } | Message::Vote { term, .. } => term,
                        _ => u64::MAX,
                    };
                    let load = Load::Message(message.encode());
                    self.network.insert(Packet { from: actor, to: index(&to), term, load });
                }
                (Output::Release { through }, Some(Data::Live { reign, .. })) => {
                    let mut at = Position::new(*reign, through);
                    while at.epoch <= self.bases[&at.term].epoch && at.term > 1 {
                        at.term = self.bases[&at.term].term;
                    }
                    let latest = self.released.entry(*reign).or_insert(at);
                    *latest = at.max(*latest);
                }
                (Output::BeginSync { peer, .. }, _) => drop(self.syncs.insert((actor, index(&peer)))),
                (Output::Resend { to, after }, Some(Data::Live { reign, sealed, .. })) => {
                    for (to, epoch) in to.iter().flat_map(|to| (after + 1..=sealed.epoch).map(move |epoch| (to, epoch)))
                    {
                        let load = Load::Epoch(Position::new(*reign, epoch));
                        self.network.insert(Packet { from: actor, to: index(to), term: *reign, load });
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether `early` lies on the history that leads to `late`.
    fn leads_to(&self, early: Position, mut late: Position) -> bool {
        while late.term > early.term {
            match self.bases.get(&late.term) {
                Some(base) if *base < late => late = *base,
                _ => return false,
            }
        }
        late.term == early.term && early.epoch <= late.epoch
    }

    fn one_history(&self) -> bool {
        let all: Vec<_> = self.released.values().collect();
        all.iter().all(|a| all.iter().all(|b| self.leads_to(**a, **b) || self.leads_to(**b, **a)))
    }

    fn kept(&self) -> bool {
        let terms = self.bases.iter();
        terms.into_iter().all(|(term, base)| {
            self.released.iter().filter(|(released_in, _)| *released_in < term).all(|(_, at)| self.leads_to(*at, *base))
        })
    }
}

/// Searches and fails when something is not true, or when less than `reaches` of what should be possible was seen.
fn check(what: &str, group: Group, depth: usize, reaches: usize) {
    let depth = std::env::var("MYCELIUM_MODEL_DEPTH").ok().and_then(|depth| depth.parse().ok()).unwrap_or(depth);
    let checker = group.checker().threads(2).target_max_depth(depth).spawn_bfs().join();
    let discoveries = checker.discoveries();
    println!(
        "{what}: {} states, {} distinct, depth {}, reached {:?}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        discoveries.keys().collect::<Vec<_>>()
    );
    for name in [ONE_HISTORY, KEPT, ONE_PRIMARY] {
        if let Some(path) = discoveries.get(name) {
            panic!("{what}: not true that {name}:\n{:#?}", path.clone().into_actions());
        }
    }
    assert!(discoveries.len() >= reaches, "{what}: the search is too narrow to reach what it should");
}

/// How often: epochs, elections, crashes, peers thought lost, duplicates, migrations.
fn budget([seals, elections, crashes, losses, duplicates, migrations]: [u8; 6]) -> Budget {
    Budget { seals, elections, crashes, losses, duplicates, migrations }
}

fn group(backups: usize, witnesses: usize, policy: Policy, alone: Alone, how: How, bounds: [u8; 6]) -> Group {
    let rules = Rules { policy, alone, ..Rules::default() };
    Group { backups, witnesses, rules, how, budget: budget(bounds), fault: None }
}

#[test]
fn model_one_backup() {
    let two = |alone, how, bounds| group(1, 0, Policy::Majority, alone, how, bounds);
    check("1+1, go on", two(Alone::GoOn, How::Automatic, [1, 1, 1, 1, 0, 0]), 10, 2);
    check("1+1, stalled", two(Alone::GoOn, How::Automatic, [2, 1, 0, 2, 0, 0]), 9, 1);
    check("1+1, hold, by hand", two(Alone::Hold, How::ByHand, [1, 2, 1, 0, 0, 0]), 10, 1);
    check("1+1, migrated", two(Alone::GoOn, How::Automatic, [1, 1, 1, 0, 0, 1]), 10, 1);
}

#[test]
fn model_one_backup_and_a_witness() {
    let three = |bounds| group(1, 1, Policy::Majority, Alone::GoOn, How::Automatic, bounds);
    check("1+1 and a witness", three([1, 1, 1, 1, 0, 0]), 9, 2);
    check("1+1 and a witness, two elections", three([1, 2, 0, 0, 0, 0]), 9, 1);
}

#[test]
fn model_two_backups() {
    for policy in [Policy::Any, Policy::Majority] {
        let three = |bounds| group(2, 0, policy, Alone::GoOn, How::Automatic, bounds);
        check(&format!("1+2, {policy:?}"), three([1, 1, 1, 0, 0, 0]), 10, 1);
        check(&format!("1+2, {policy:?}, duplicates"), three([1, 1, 0, 1, 1, 0]), 7, 0);
    }
}

/// Faults that this model sees, each with a group and bounds in which it shows.
fn visible_faults() -> Vec<(Fault, Group)> {
    let backups = |policy, bounds| group(2, 0, policy, Alone::GoOn, How::Automatic, bounds);
    let witness = |bounds| group(1, 1, Policy::Majority, Alone::GoOn, How::Automatic, bounds);
    vec![
        (Fault::ReleaseBeforeQuorum, backups(Policy::Any, [1, 1, 0, 0, 0, 0])),
        (Fault::NoVoteFencing, backups(Policy::Any, [1, 1, 0, 0, 0, 0])),
        (Fault::WrongCandidate, backups(Policy::Any, [1, 1, 0, 0, 0, 0])),
        (Fault::HoldersIgnored, backups(Policy::Any, [1, 1, 1, 0, 0, 0])),
        (Fault::LostHoldersCount, backups(Policy::Any, [1, 1, 1, 0, 0, 0])),
        (Fault::VotesTwice, backups(Policy::Any, [0, 2, 0, 0, 0, 0])),
        (Fault::ReleaseByProposal, witness([1, 1, 0, 1, 0, 0])),
        (Fault::ReleaseAfterHandOver, group(1, 0, Policy::All, Alone::GoOn, How::Automatic, [1, 0, 0, 1, 0, 1])),
        (Fault::ReleaseBeforeSettled, witness([1, 3, 0, 0, 0, 0])),
        (Fault::PledgeForgotten, group(2, 0, Policy::Majority, Alone::GoOn, How::Automatic, [0, 1, 1, 0, 0, 1])),
        (Fault::BeginsBeforeReleased, backups(Policy::Any, [1, 1, 0, 0, 0, 0])),
        (Fault::SucceedsBeforeReleased, backups(Policy::Any, [1, 1, 0, 0, 0, 0])),
    ]
}

#[test]
fn model_finds_faults() {
    for (fault, group) in visible_faults() {
        let group = Group { fault: Some(fault), ..group };
        let wrong = stateright::HasDiscoveries::AnyOf(BTreeSet::from([ONE_HISTORY, KEPT, ONE_PRIMARY]));
        let checker = group.checker().threads(2).target_max_depth(12).finish_when(wrong).spawn_bfs().join();
        let path = [ONE_HISTORY, KEPT, ONE_PRIMARY].iter().find_map(|name| Some((name, checker.discovery(name)?)));
        let (name, path) =
            path.unwrap_or_else(|| panic!("{fault:?} is not noticed in {} states", checker.state_count()));
        println!("{fault:?}: after {} steps it is not true that {name}", path.into_actions().len());
    }
}
