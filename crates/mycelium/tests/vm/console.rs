//! `mycelium vm console` with a pipe for a terminal.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::common::eventually;
use crate::guests::VM;
use crate::lab::Lab;

/// After this long without an answer the guest may be on another host.
const ANSWERED: Duration = Duration::from_secs(20);

/// A console that is open; closed when dropped.
struct Console {
    child: Child,
    typed: ChildStdin,
    said: Arc<Mutex<String>>,
}

impl Console {
    fn open(lab: &mut Lab, host: &str) -> Self {
        let mut child = lab.host(host).begin(&["console", VM]);
        let (typed, mut out) = (child.stdin.take().expect("stdin"), child.stdout.take().expect("stdout"));
        let said = Arc::<Mutex<String>>::default();
        let heard = Arc::clone(&said);
        thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = out.read(&mut buffer) {
                heard.lock().expect("console").push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        Self { child, typed, said }
    }

    /// Types a line, and waits for the guest's word about it.
    fn converse(&mut self, line: &str) -> Result<(), String> {
        let begun = Instant::now();
        let _ = self.typed.write_all(format!("{line}\n").as_bytes());
        let wanted = format!("guest: heard {line}");
        while begun.elapsed() < ANSWERED {
            if self.said.lock().expect("console").contains(&wanted) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err(format!("the guest said {:?}", self.said.lock().expect("console")))
    }

    /// Ctrl-].
    fn leave(&mut self) -> Option<i32> {
        let _ = self.typed.write_all(b"\x1d");
        // The pipe stays open: it is the key that ends it.
        self.child.wait().expect("the console ends").code()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line is typed to the guest, wherever it is, and answered; then the console is left. Tells on which host that was.
pub fn speak(lab: &mut Lab, line: &str) -> String {
    eventually("the guest answers on its console", || {
        let (host, _) = lab.primary(VM).ok_or("no primary")?;
        let mut console = Console::open(lab, &host);
        console.converse(line)?;
        match console.leave() {
            Some(0) => Ok(host),
            code => Err(format!("Ctrl-] ended it with {code:?}")),
        }
    })
}
