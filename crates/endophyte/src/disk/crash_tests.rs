//! A replica on a disk that tears writes, fills up, and forgets what was not synced: it is always at a whole epoch.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::meta::Lineage;
use super::replica::Base;
use super::*;

const SIZE: usize = 5 * BLOCK as usize + 1536;

/// Files in memory, each with what is durable and what is only cached.
#[derive(Default)]
struct Sim {
    files: [SimState; 5],
    random: u64,
    /// Operations until the machine stops.
    budget: Option<u64>,
    /// One in so many operations finds the medium full.
    full_every: u64,
}

#[derive(Default, Clone)]
struct SimState {
    durable: Vec<u8>,
    cached: Vec<u8>,
    pending: Vec<Op>,
}

#[derive(Clone)]
enum Op {
    Write(usize, Vec<u8>),
    Resize(usize),
}

impl Op {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => {
                content.resize(content.len().max(at + data.len()), 0);
                content[*at..at + data.len()].copy_from_slice(data);
            }
            Self::Resize(len) => content.resize(*len, 0),
        }
    }
}

impl Sim {
    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % below
    }

    fn run(&mut self, file: usize, op: Op) -> io::Result<()> {
        let full = self.full_every > 0 && self.random(self.full_every) == 0;
        match &mut self.budget {
            Some(0) => return Err(io::Error::other("the machine has stopped")),
            Some(left) => *left -= 1,
            None => {}
        }
        let op = if full || self.budget == Some(0) { self.torn(op) } else { op };
        let state = &mut self.files[file];
        op.apply(&mut state.cached);
        state.pending.push(op);
        match (self.budget, full) {
            (Some(0), _) => Err(io::Error::other("the machine stops here")),
            (_, true) => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn torn(&mut self, op: Op) -> Op {
        match op {
            Op::Write(at, mut data) => {
                data.truncate(self.random(data.len() as u64 + 1) as usize);
                Op::Write(at, data)
            }
            // A file system does this wholly or not at all; not at all is the harder one.
            Op::Resize(_) => Op::Write(0, Vec::new()),
        }
    }

    /// The process dies; with `power`, so does the machine, which keeps any part of what was not synced.
    fn crash(&mut self, power: bool) {
        self.budget = None;
        for file in 0..self.files.len() {
            if !power {
                continue;
            }
            for op in std::mem::take(&mut self.files[file].pending) {
                for part in sectors(op) {
                    if self.random(2) == 0 {
                        part.apply(&mut self.files[file].durable);
                    }
                }
            }
            self.files[file].cached = self.files[file].durable.clone();
        }
    }
}

fn sectors(op: Op) -> Vec<Op> {
    match op {
        Op::Write(at, data) => {
            data.chunks(512).enumerate().map(|(n, part)| Op::Write(at + n * 512, part.to_vec())).collect()
        }
        resize @ Op::Resize(_) => vec![resize],
    }
}

struct SimFile(Arc<Mutex<Sim>>, usize);

impl Storage for SimFile {
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let sim = self.0.lock().unwrap();
        let content = sim.files[self.1].cached.get(offset as usize..offset as usize + buffer.len());
        buffer.copy_from_slice(content.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.lock().unwrap().run(self.1, Op::Write(offset as usize, data.to_vec()))
    }
    fn zero(&self, offset: u64, len: u64, _: bool) -> io::Result<()> {
        self.write(&vec![0; len as usize], offset)
    }
    fn sync(&self) -> io::Result<()> {
        let mut sim = self.0.lock().unwrap();
        sim.run(self.1, Op::Write(0, Vec::new()))?;
        let state = &mut sim.files[self.1];
        state.durable = state.cached.clone();
        state.pending.clear();
        Ok(())
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().files[self.1].cached.len() as u64)
    }
    fn resize(&self, size: u64) -> io::Result<()> {
        self.0.lock().unwrap().run(self.1, Op::Resize(size as usize))
    }
    fn next_data(&self, from: u64) -> io::Result<Option<(u64, u64)>> {
        let size = self.size()?;
        Ok((from < size).then_some((from, size)))
    }
}

fn open(sim: &Arc<Mutex<Sim>>, options: ReplicaOptions, boot: u8) -> Result<Replica> {
    let file = |which| Box::new(SimFile(Arc::clone(sim), which)) as Box<dyn Storage>;
    let files = ReplicaFiles { image: file(0), meta: file(1), map: file(2), journals: [file(3), file(4)] };
    Replica::open_files(Path::new("/sim"), files, Some(SIZE as u64), options, [boot; 16])
}

fn random_epoch(sim: &Mutex<Sim>, epoch: u64, image: &mut [u8]) -> DiskEpoch {
    let mut sim = sim.lock().unwrap();
    let writes = (0..sim.random(6)).map(|_| {
        let len = sim.random(9000) + 1;
        let offset = sim.random(SIZE as u64 - len + 1);
        let target = &mut image[offset as usize..(offset + len) as usize];
        if sim.random(3) == 0 {
            target.fill(0);
            return Write { offset, payload: Payload::Zero(len) };
        }
        target.fill(sim.random(255) as u8 + 1);
        Write { offset, payload: Payload::Data(Bytes::copy_from_slice(target)) }
    });
    DiskEpoch { epoch, writes: writes.collect() }
}

/// The image is the content of the position it claims, and outside of the marked blocks that of the base.
fn check(replica: &Replica, history: &[Vec<u8>], what: &str) -> u64 {
    let position = replica.position().unwrap();
    replica.maintain().unwrap();
    let mut content = vec![0; SIZE];
    replica.image().read(&mut content, 0).unwrap();
    assert!(content == history[position.epoch as usize], "{what}: not the content of epoch {position}");
    if let Some(base) = replica.base() {
        let marked = replica.known().2;
        for block in 0..(SIZE as u64).div_ceil(BLOCK) {
            let bytes = (block * BLOCK) as usize..((block + 1) * BLOCK).min(SIZE as u64) as usize;
            let same = content[bytes.clone()] == history[base.epoch as usize][bytes];
            assert!(same || marked.iter().any(|range| range.contains(&block)), "{what}: block {block} is not marked");
        }
    }
    position.epoch
}

fn one_life(seed: u64) {
    let sim = Arc::new(Mutex::new(Sim { random: seed, ..Sim::default() }));
    let random = |below| sim.lock().unwrap().random(below);
    let durable = random(2) == 0;
    let options = ReplicaOptions { durable, journal_max: random(60_000), pending_max: random(60_000) };
    let mut boot = 0;
    let mut replica = open(&sim, options, boot).unwrap();
    let base = Base {
        lineage: Lineage::from([7; 16]),
        size: SIZE as u64,
        base: Position { term: 1, epoch: 0 },
        compare: std::iter::once(0..6).collect(),
        epoch: 0,
    };
    replica.begin_base(&base).unwrap();
    replica.finish_base(base.base).unwrap();
    let mut history = vec![vec![0; SIZE]];
    for crash in 0..4 {
        let what = format!("seed {seed}, crash {crash}");
        let (mut acked, mut safe) = (history.len() as u64 - 1, history.len() as u64 - 1);
        sim.lock().unwrap().full_every = [0, 20][random(2) as usize];
        let budget = random(80) + 1;
        sim.lock().unwrap().budget = Some(budget);
        let (mut stopped, mut offered) = (false, None);
        while !stopped {
            let outcome = match random(4) {
                0 => replica.maintain().inspect(|()| safe = acked),
                1 => replica.settled(Position { term: 1, epoch: random(acked + 1) }),
                _ => {
                    // One that was refused is offered again: a primary seals an epoch once.
                    let epoch = offered.get_or_insert_with(|| {
                        let mut image = history[acked as usize].clone();
                        let epoch = random_epoch(&sim, acked + 1, &mut image);
                        history.push(image);
                        epoch
                    });
                    let committed = replica.commit(1, epoch);
                    committed.inspect(|_| (acked, offered) = (acked + 1, None)).map(|_| ())
                }
            };
            match outcome {
                Err(DiskError::Full { .. }) | Ok(()) => {}
                Err(_) => stopped = true,
            }
            assert_eq!(replica.position().unwrap().epoch, acked, "{what}");
        }
        drop(replica);
        let power = random(2) == 0;
        sim.lock().unwrap().full_every = 0;
        sim.lock().unwrap().crash(power);
        boot += u8::from(power);
        // The recovery may be cut short as well.
        let budget = random(30);
        sim.lock().unwrap().budget = Some(budget);
        drop(open(&sim, options, boot));
        sim.lock().unwrap().crash(power);
        boot += u8::from(power);
        replica = open(&sim, options, boot).unwrap();
        let epoch = check(&replica, &history, &what);
        let least = if power && !durable { safe } else { acked };
        assert!(epoch >= least && epoch <= acked + 1, "{what}: epoch {epoch}, but {least} was safe and {acked} held");
        history.truncate(epoch as usize + 1);
    }
}

#[test]
fn a_replica_is_always_at_a_whole_epoch() {
    (0..120).for_each(one_life);
}

#[test]
fn gaps_old_terms_and_repetitions() {
    let sim = Arc::new(Mutex::new(Sim::default()));
    let replica = open(&sim, ReplicaOptions::default(), 0).unwrap();
    let epoch = |epoch| DiskEpoch { epoch, writes: Vec::new() };
    assert!(matches!(replica.commit(1, &epoch(1)), Err(DiskError::Incomplete)));
    let base = Position { term: 2, epoch: 10 };
    replica.begin_base(&Base { lineage: [1; 16], size: SIZE as u64, base, compare: Vec::new(), epoch: 10 }).unwrap();
    replica.finish_base(base).unwrap();
    assert_eq!(replica.commit(2, &epoch(11)).unwrap(), Committed::New);
    assert_eq!(replica.commit(2, &epoch(11)).unwrap(), Committed::Repeated);
    assert!(matches!(replica.commit(2, &epoch(13)), Err(DiskError::Gap { .. })));
    assert!(matches!(replica.commit(1, &epoch(12)), Err(DiskError::Stale { .. })));
    assert!(matches!(replica.commit(3, &epoch(11)), Err(DiskError::Stale { .. })), "another history");
    assert_eq!(replica.commit(3, &epoch(12)).unwrap(), Committed::New);
    assert!(matches!(replica.commit(2, &epoch(12)), Err(DiskError::Stale { .. })));
    let outside = Write { offset: SIZE as u64 - 1, payload: Payload::Zero(2) };
    let outside = DiskEpoch { epoch: 13, writes: vec![outside] };
    assert!(matches!(replica.commit(3, &outside), Err(DiskError::OutOfRange { .. })));
    assert_eq!(replica.position(), Some(Position { term: 3, epoch: 12 }));
    drop(replica);
    let replica = open(&sim, ReplicaOptions::default(), 0).unwrap();
    assert_eq!(replica.position(), Some(Position { term: 3, epoch: 12 }));
}

/// Lets qemu-io write to a disk, and dies before it could flush by itself.
fn write_and_die(socket: &Path, words: &[&str]) {
    let mut client = mycelium_linux::process::command("qemu-io");
    client.args(["-f", "raw", "-t", "writeback"]).args(words.iter().flat_map(|word| ["-c", word]));
    client.args(["-c", "abort"]).arg(format!("nbd+unix:///?socket={}", socket.display()));
    let output = client.output().expect("qemu-io, of Debian's qemu-utils: scripts/setup.sh test installs it");
    assert_eq!(output.status.signal(), Some(6), "{output:?}");
}

#[test]
fn what_was_flushed_or_forced_is_on_the_medium_and_while_protected_only_after_the_end_of_that() {
    let sim = Arc::new(Mutex::new(Sim::default()));
    let file = |which| Box::new(SimFile(Arc::clone(&sim), which)) as Box<dyn Storage>;
    file(0).resize(SIZE as u64).unwrap();
    file(0).sync().unwrap();
    let (meta_file, _) = meta::MetaFile::load(file(1), Path::new("/sim/meta")).unwrap();
    let (lineage, position) = (Lineage::from([7; 16]), Position::default());
    let meta = meta::Meta { lineage, role: meta::Role::Primary, tracked: false, position, size: SIZE as u64 };
    let disk = Disk::assemble(Path::new("/sim"), file(0), meta_file, meta, Err(Some(file(2)))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("disk.sock");
    let _server = disk.serve(&socket).unwrap();
    let of = |content: &[u8]| (content[0], content[511]);
    let durable = || of(&sim.lock().unwrap().files[0].durable);

    write_and_die(&socket, &["write -P 1 0 512"]);
    assert_eq!(of(&sim.lock().unwrap().files[0].cached), (1, 1), "written");
    assert_eq!(durable(), (0, 0), "nobody asked for more");
    write_and_die(&socket, &["write -P 2 0 512", "flush"]);
    assert_eq!(durable(), (2, 2), "flushed");
    write_and_die(&socket, &["write -f -P 3 0 512"]);
    assert_eq!(durable(), (3, 3), "forced unit access");
    disk.protect(Protection::new(1, 1)).unwrap();
    write_and_die(&socket, &["write -f -P 4 0 512", "flush"]);
    assert_eq!(durable(), (3, 3), "what makes it durable is that backups hold its epoch");
    disk.unprotect().unwrap();
    assert_eq!(durable(), (4, 4), "now nobody else holds it");
}
