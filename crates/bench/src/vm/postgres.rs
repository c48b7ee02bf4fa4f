//! A load on the guest's PostgreSQL: clients that each move money between accounts and write it down, as pgbench does. A
//! process of its own, in the client's network. Speaks as much of the protocol (version 3, simple queries) as that takes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::lab::{GUEST, Lab, eventually};

const ACCOUNTS: u64 = 20_000;
const CLIENTS: u64 = 4;

/// One connection to the server.
struct Connection(TcpStream);

impl Connection {
    fn open(address: &str) -> io::Result<Self> {
        let address = address.parse().map_err(io::Error::other)?;
        let mut connection = Self(TcpStream::connect_timeout(&address, Duration::from_secs(2))?);
        connection.0.set_nodelay(true)?;
        let parameters = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
        connection.0.write_all(&(parameters.len() as u32 + 4).to_be_bytes())?;
        connection.0.write_all(parameters)?;
        connection.answer()?;
        Ok(connection)
    }

    fn query(&mut self, text: &str) -> io::Result<()> {
        let mut message = vec![b'Q'];
        message.extend((text.len() as u32 + 5).to_be_bytes());
        message.extend(text.as_bytes());
        message.push(0);
        self.0.write_all(&message)?;
        self.answer()
    }

    /// Reads until the server is ready for the next query.
    fn answer(&mut self) -> io::Result<()> {
        let mut failed = Ok(());
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head)?;
            let [kind, length @ ..] = head;
            let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
            self.0.read_exact(&mut body)?;
            match kind {
                b'Z' => return failed,
                b'E' => failed = Err(io::Error::other(String::from_utf8_lossy(&body).replace('\0', " "))),
                _ => {}
            }
        }
    }
}

/// What the process does: fills the tables, says `ready`, then how many transactions there were, ten times a second.
pub fn work(address: &str) -> Result<()> {
    let mut first = eventually("PostgreSQL answers", || Connection::open(address).ok())?;
    first.query(&format!(
        "create table accounts (id int primary key, balance bigint not null, filler char(84) not null default '');
         create table history (id bigserial, at timestamptz default now(), account int, amount int, filler char(22));
         insert into accounts (id, balance) select id, 0 from generate_series(0, {}) id; checkpoint",
        ACCOUNTS - 1
    ))?;
    println!("ready");
    let done = Arc::new(AtomicU64::new(0));
    for client in 0..CLIENTS {
        let (mut connection, done, mut state) = (Connection::open(address)?, Arc::clone(&done), client + 1);
        std::thread::spawn(move || -> io::Result<()> {
            loop {
                // Knuth's generator: its upper bits are good enough to choose accounts.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (account, amount) = ((state >> 33) % ACCOUNTS, (state >> 20) % 1000);
                connection.query(&format!(
                    "begin; update accounts set balance = balance + {amount} where id = {account};
                     insert into history (account, amount) values ({account}, {amount}); commit"
                ))?;
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    loop {
        std::thread::sleep(Duration::from_millis(100));
        println!("{}", done.load(Ordering::Relaxed));
    }
}

/// The load, until it is dropped.
pub struct Load {
    child: Child,
    done: Arc<AtomicU64>,
}

impl Load {
    /// Starts it; returns when the tables are filled.
    pub fn start(lab: &Lab) -> Result<Self> {
        let mut command = lab.inside("client", std::env::current_exe()?);
        command.args([super::HELPER, "postgres", &format!("{GUEST}:5432")]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let ready = lines.next().context("the load ended")??;
        ensure!(ready == "ready", "the load said {ready}");
        let done = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&done);
        std::thread::spawn(move || {
            lines.map_while(Result::ok).flat_map(|line| line.parse()).for_each(|n| count.store(n, Ordering::Relaxed));
        });
        Ok(Self { child, done })
    }

    /// Transactions so far.
    pub fn transactions(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
