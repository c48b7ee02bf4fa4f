//! A few threads for what would make a connection wait: reads that miss the page cache, and syncs.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

const THREADS: usize = 8;
/// Connections wait when so many jobs do.
const QUEUE: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// The threads; they end when the pool is dropped and the queue is empty.
pub struct Pool {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..THREADS).map(|_| {
            let queue = Arc::clone(&queue);
            Builder::new().name("disk-io".into()).spawn(move || work(&queue))
        });
        Ok(Self { threads: threads.collect::<io::Result<_>>()?, jobs: Some(jobs) })
    }

    /// Runs a job soon.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(jobs) = &self.jobs {
            // Fails only if all threads panicked; the client then waits, as for a medium that hangs.
            let _ = jobs.send(Box::new(job));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}
