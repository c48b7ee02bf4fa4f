//! The lives and phases of one run.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kube::Client;
use mycelium_apiserver::{ApiServer, Config, Identity, Pki};
use mycelium_controllers as controllers;
use mycelium_store::simulated::{Outcome, SimulatedDisk};
use mycelium_store::{Options, Store, Writer};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use crate::api::Api;
use crate::checker::Checker;
use crate::clock::Clock;
use crate::identity::Alive;
use crate::network::{Complaints, Network};
use crate::node::{Node, Running};
use crate::plan::{Faults, Plan};
use crate::random::Random;
use crate::settled::unsettled;
use crate::user::User;

/// How long things may take to settle after that.
const SETTLE: Duration = Duration::from_secs(1200);
/// After this, every node is back.
const LONGEST_ABSENCE: Duration = Duration::from_secs(95);
/// After this, every watch that fell silent has been replaced.
const LONGEST_SILENCE: Duration = Duration::from_secs(330);
/// For how long nothing may change after that.
const REST: Duration = Duration::from_secs(90);

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The plan that followed from it.
    pub plan: Plan,
    /// A number that two runs of the seed share.
    pub trace: u64,
    /// Virtual time the run took.
    pub elapsed: Duration,
    /// How often the engine's process was started.
    pub lives: u64,
    /// The store's last revision.
    pub revision: u64,
    /// What was wrong, with the events before it.
    pub failure: Option<(String, Vec<String>)>,
}

/// Runs a seed.
pub fn run(seed: u64) -> Report {
    let mut world = World::new(seed);
    let failure = loop {
        match world.in_a_process(|world| Box::pin(world.live())) {
            End::Killed => {}
            End::Violation(violation) => break Some(violation),
            End::Done => break world.in_a_process(|world| Box::pin(world.look_again())),
        }
    };
    Report {
        seed,
        trace: world.checker.trace(),
        elapsed: world.clock.elapsed(),
        lives: world.lives,
        revision: world.revision,
        failure: failure.map(|violation| (violation, world.checker.recent())),
        plan: world.plan,
    }
}

/// Everything that outlives the engine's process.
struct World {
    plan: Plan,
    random: Random,
    disk: SimulatedDisk,
    clock: Clock,
    faults: Faults,
    checker: Checker,
    complaints: Complaints,
    user: User,
    running: Vec<Running>,
    alive: Alive,
    lives: u64,
    crashes_left: u64,
    actions_left: u64,
    revision: u64,
}

/// How a life ended.
enum End {
    Killed,
    Violation(String),
    Done,
}

type Fate<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + 'a>>;

impl World {
    fn new(seed: u64) -> Self {
        let random = Random::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x6D79_6365);
        let plan = Plan::new(seed, &random);
        let clock = Clock::default();
        Self {
            disk: SimulatedDisk::from_image(first_image().to_vec(), random.next()),
            faults: Faults::new(&plan, random.fork()),
            checker: Checker::new(&plan, &clock),
            complaints: Complaints::default(),
            user: User::new(random.fork(), !plan.calm),
            running: vec![Running::default(); plan.nodes as usize].into_iter().map(|_| Running::default()).collect(),
            alive: Alive::default(),
            lives: 0,
            crashes_left: plan.crashes,
            actions_left: plan.actions,
            revision: 0,
            clock,
            random,
            plan,
        }
    }

    /// Runs one life of the process: its tasks end with it.
    fn in_a_process<T>(&mut self, life: impl for<'a> FnOnce(&'a mut Self) -> Fate<'a, T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().expect("a runtime without I/O needs nothing");
        let clock = self.clock.clone();
        let end = runtime.block_on(async {
            clock.start();
            let end = life(self).await;
            clock.stop();
            end
        });
        drop(runtime);
        end
    }

    fn open(&self, crashed: &Arc<Notify>) -> Result<Store, String> {
        self.faults.set(false);
        let (faults, bell) = (self.faults.clone(), crashed.clone());
        self.disk.set_hook(Some(Box::new(move |_| {
            let outcome = faults.disk();
            if outcome == Outcome::Crash {
                bell.notify_one();
            }
            outcome
        })));
        let faults = self.faults.clone();
        let options = Options {
            writer: Writer::Task,
            history: self.plan.history,
            pause: Some(Arc::new(move || faults.disk_pause())),
            ..Options::default()
        };
        Store::open(self.disk.backend(), options).map_err(|error| format!("the store cannot be opened: {error}"))
    }

    async fn live(&mut self) -> End {
        self.lives += 1;
        let crashed = Arc::new(Notify::new());
        let store = match self.open(&crashed) {
            Ok(store) => store,
            Err(violation) => return End::Violation(violation),
        };
        if let Err(violation) = self.checker.reopened(&store) {
            return End::Violation(violation);
        }
        let Ok(watch) = store.watch("", store.revision()) else {
            return End::Violation("the current revision is compacted".into());
        };
        let api = match self.start_engine(&store) {
            Ok(api) => api,
            Err(violation) => return End::Violation(violation),
        };
        let killed_at = self.begin_faults();
        let checker = self.checker.clone();
        let end = tokio::select! {
            biased;
            () = crashed.notified() => End::Killed,
            violation = checker.follow(watch) => End::Violation(violation),
            () = sleep_until(killed_at) => End::Killed,
            end = self.script(&store, &api) => end,
        };
        self.revision = store.revision();
        if matches!(end, End::Killed) {
            self.crashes_left = self.crashes_left.saturating_sub(1);
            self.checker.mark("the process is killed");
            // Before the tasks are dropped, so that none of them writes in its last moment.
            self.disk.crash();
        }
        end
    }

    /// Starts server, controllers and nodes.
    fn start_engine(&self, store: &Store) -> Result<Api, String> {
        let env = self.clock.env(&self.random.fork());
        let config = Config::new(store.clone(), env.clone(), pki().clone());
        let server = ApiServer::new(config).map_err(|error| format!("the server does not start: {error}"))?;
        let client = |name: &str| {
            let service = server.client_service(Identity::internal(name));
            Client::new(Network::new(service, self.faults.clone(), self.complaints.clone()), "default")
        };
        let options = controllers::Options::default();
        tokio::spawn(controllers::run(client("system:kube-controller-manager"), env, options));
        for number in 0..self.plan.nodes {
            let node = Node {
                number,
                api: Api::new(client(&format!("system:node:node-{number}"))),
                clock: self.clock.clone(),
                faults: self.faults.clone(),
                random: self.random.fork(),
                running: self.running[number as usize].clone(),
                alive: self.alive.clone(),
                complaints: self.complaints.clone(),
            };
            tokio::spawn(node.run());
        }
        Ok(Api::new(client("user")))
    }

    /// Switches the faults on while the chaos lasts; returns when the process will be killed, far away if it will not.
    fn begin_faults(&self) -> Instant {
        let never = Instant::now() + Duration::from_secs(1_000_000);
        if self.actions_left == 0 || self.plan.calm {
            return never;
        }
        self.faults.set(true);
        match (self.crashes_left, self.random.below(2)) {
            (0, _) => never,
            (_, 0) => {
                self.faults.crash_after(20 + self.random.below(3000));
                never
            }
            (_, _) => Instant::now() + self.random.millis(10, self.plan.chaos.as_millis() as u64 / 2),
        }
    }

    /// The user's doings, and what must come of them.
    async fn script(&mut self, store: &Store, api: &Api) -> End {
        let pace = self.plan.chaos.as_millis() as u64 * 2 / self.plan.actions;
        while self.actions_left > 0 {
            let wait = if self.random.chance(300) { Duration::from_millis(1) } else { self.random.millis(0, pace) };
            sleep(wait).await;
            self.actions_left -= 1;
            self.user.act(api, &self.checker, &self.complaints).await;
            if let Some(complaint) = self.complaints.first() {
                return End::Violation(complaint);
            }
        }
        self.faults.set(false);
        self.checker.mark("the faults stop");
        // A node that is away may not have been missed yet, a watch that fell silent not be noticed.
        sleep(if self.plan.watches_stall { LONGEST_SILENCE } else { LONGEST_ABSENCE }).await;
        match self.settle(store).await {
            Ok(()) => End::Done,
            Err(violation) => End::Violation(violation),
        }
    }

    async fn settle(&self, store: &Store) -> Result<(), String> {
        let limit = Instant::now() + SETTLE;
        loop {
            sleep(Duration::from_secs(3)).await;
            if let Some(complaint) = self.complaints.first() {
                return Err(complaint);
            }
            let mut faults = unsettled(store);
            faults.extend(self.checker.jobs());
            if faults.is_empty() {
                break;
            }
            if Instant::now() >= limit {
                return Err(format!("things do not settle: {}", faults.join("; ")));
            }
        }
        self.checker.mark("settled");
        let before = self.checker.activity();
        sleep(REST).await;
        match (self.checker.activity() - before, unsettled(store)) {
            (0, faults) if faults.is_empty() => Ok(()),
            (changes, faults) => {
                Err(format!("{changes} changes of pods and deployments after all had settled; {}", faults.join("; ")))
            }
        }
    }

    /// After an orderly end everything is there, too.
    async fn look_again(&mut self) -> Option<String> {
        let opened = self.open(&Arc::default());
        opened.and_then(|store| self.checker.reopened(&store)).err()
    }
}

/// Keys are made once: they are slow to make and have no influence.
fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(|| {
        let env = Clock::default().env(&Random::new(0));
        Pki::in_memory(env, &["localhost".to_owned()]).expect("keys can be made in memory")
    })
}

/// A disk on which the server has created what every cluster has.
fn first_image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().expect("a runtime without I/O needs nothing");
        let disk = SimulatedDisk::new(0);
        runtime.block_on(async {
            let clock = Clock::default();
            clock.start();
            let options = Options { writer: Writer::Task, ..Options::default() };
            let store = Store::open(disk.backend(), options).expect("an empty disk takes a store");
            let config = Config::new(store, clock.env(&Random::new(0)), pki().clone());
            let server = ApiServer::new(config).expect("the server starts");
            server.bootstrap().await.expect("an empty store takes the first objects");
        });
        drop(runtime);
        disk.image()
    })
}
