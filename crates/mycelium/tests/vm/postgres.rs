//! A bank on the guest's PostgreSQL, through one connection that is never opened again. Speaks as much of PostgreSQL's
//! protocol (version 3, simple queries) as that takes.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::{PATIENCE, eventually};
use crate::lab::{GUEST, Lab};
use crate::random::Random;

const ACCOUNTS: u64 = 20;
const EACH: u64 = 1000;

/// One connection to a server.
struct Connection(TcpStream);

impl Connection {
    /// Waits for the server, which answers only once the guest is up.
    fn open(lab: &Lab) -> Self {
        eventually("PostgreSQL answers", || {
            let address = (GUEST.parse::<std::net::Ipv4Addr>().expect("address"), 5432).into();
            let stream = lab.at_client(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(2))));
            let mut connection = Self(stream.map_err(|error| error.to_string())?);
            connection.begin().map_err(|error| error.to_string())?;
            Ok(connection)
        })
    }

    fn begin(&mut self) -> io::Result<()> {
        self.0.set_nodelay(true)?;
        self.0.set_read_timeout(Some(PATIENCE))?;
        let mut startup = 196_608_u32.to_be_bytes().to_vec();
        startup.extend(b"user\0postgres\0database\0postgres\0\0");
        self.0.write_all(&(startup.len() as u32 + 4).to_be_bytes())?;
        self.0.write_all(&startup)?;
        self.answer().map(drop)
    }

    /// Runs statements, and returns the first column of the rows.
    fn query(&mut self, text: &str) -> io::Result<Vec<String>> {
        let mut message = vec![b'Q'];
        message.extend((text.len() as u32 + 5).to_be_bytes());
        message.extend(text.as_bytes());
        message.push(0);
        self.0.write_all(&message)?;
        self.answer()
    }

    /// Reads until the server is ready for the next query.
    fn answer(&mut self) -> io::Result<Vec<String>> {
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
            let mut body = vec![0; length];
            self.0.read_exact(&mut body)?;
            match head[0] {
                b'Z' => return failed.map_or(Ok(rows), |text| Err(io::Error::other(text))),
                // Fields: count, then length and bytes of each.
                b'D' => {
                    let size = u32::from_be_bytes([body[2], body[3], body[4], body[5]]) as usize;
                    rows.push(String::from_utf8_lossy(&body[6..6 + size]).into_owned());
                }
                b'E' => failed = Some(String::from_utf8_lossy(&body).replace('\0', " ")),
                _ => {}
            }
        }
    }

    fn number(&mut self, text: &str) -> u64 {
        let rows = self.query(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        rows.first().and_then(|row| row.parse().ok()).unwrap_or_else(|| panic!("{text}: {rows:?}"))
    }
}

/// Transfers between accounts, on a thread of their own.
pub struct Bank {
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Connection>>,
}

impl Bank {
    /// Makes the accounts and begins to transfer.
    pub fn open(lab: &Lab, random: &mut Random) -> Self {
        let mut connection = Connection::open(lab);
        let setup = format!(
            "create table accounts (id int primary key, balance bigint not null);
             create table transfers (n bigint primary key);
             insert into accounts select id, {EACH} from generate_series(0, {}) id",
            ACCOUNTS - 1
        );
        connection.query(&setup).expect("accounts");
        let (acknowledged, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end, mut random) = (Arc::clone(&acknowledged), Arc::clone(&stop), Random::from(random.next()));
        let work = move || {
            while !end.load(Ordering::Relaxed) {
                let n = count.load(Ordering::Relaxed) + 1;
                let (from, to, amount) = (random.below(ACCOUNTS), random.below(ACCOUNTS), random.below(100));
                connection.query(&format!(
                    "begin; update accounts set balance = balance - {amount} where id = {from};
                     update accounts set balance = balance + {amount} where id = {to};
                     insert into transfers values ({n}); commit"
                ))?;
                count.store(n, Ordering::Relaxed);
            }
            Ok(connection)
        };
        let thread = std::thread::Builder::new().name("bank".into()).spawn(work).expect("thread");
        Self { acknowledged, stop, thread }
    }

    /// Transfers that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until more transfers were acknowledged.
    pub fn goes_on(&self) {
        let from = self.acknowledged();
        eventually("the bank goes on", || match self.acknowledged() {
            now if now >= from + 3 => Ok(()),
            now if self.thread.is_finished() => panic!("the connection broke after {now} transfers"),
            now => Err(format!("it stands at {now}")),
        });
    }

    /// Ends it and checks the books: every acknowledged transfer is there, and no money came or went.
    pub fn close(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut connection = self.thread.join().expect("bank").expect("the connection lives");
        let acknowledged = self.acknowledged.load(Ordering::Relaxed);
        assert_eq!(connection.number("select count(*) from transfers"), acknowledged);
        assert_eq!(connection.number("select coalesce(max(n), 0) from transfers"), acknowledged);
        assert_eq!(connection.number("select sum(balance) from accounts"), ACCOUNTS * EACH);
        acknowledged
    }
}
