//! Slowing the guest's processors for a part of each epoch.
//!
//! With control groups: at the start of an epoch the threads get as much processor time as they may use in it, and
//! stand still when it is used up. The bound is lifted before QEMU is told to stop, which otherwise takes milliseconds.
//! Without: the checkpoint loop leaves the guest stopped for the part that it loses.

use std::io;
use std::time::Duration;

use mycelium_linux::cgroup::Hierarchies;
use mycelium_linux::cpu_quota::CpuQuota;

/// Slows the processors of one guest.
#[derive(Debug)]
pub struct VcpuThrottle {
    quota: Option<CpuQuota>,
    cpus: u32,
    armed: bool,
}

impl VcpuThrottle {
    /// For the virtual processors `threads` of QEMU `pid`. `group` is a control group that nobody else uses.
    pub fn new(group: &str, pid: i32, threads: &[i32]) -> Self {
        let quota = CpuQuota::create(Hierarchies::get(), group, pid, threads)
            .inspect_err(|error| {
                tracing::info!(%error, group, "no control group for the virtual processors; a guest that must be slowed is stopped for a part of each epoch");
            })
            .ok();
        Self { quota, cpus: threads.len() as u32, armed: false }
    }

    /// Without control groups.
    pub fn by_holding() -> Self {
        Self { quota: None, cpus: 0, armed: false }
    }

    /// An epoch of this length begins, in which the guest loses this share of its time. To be called around `cont`.
    /// Returns how long the guest is to be held stopped instead, where there is no control group.
    pub fn begin(&mut self, intensity: f64, epoch: Duration) -> io::Result<Duration> {
        let intensity = if intensity.is_nan() { 0.0 } else { intensity.clamp(0.0, 0.99) };
        if intensity == 0.0 {
            return self.lift().map(|()| Duration::ZERO);
        }
        match &mut self.quota {
            Some(quota) => {
                self.armed = true;
                quota.limit(epoch.mul_f64((1.0 - intensity) * f64::from(self.cpus)), epoch)?;
                Ok(Duration::ZERO)
            }
            // Of run + hold, hold is the share lost.
            None => Ok(epoch.mul_f64(intensity / (1.0 - intensity))),
        }
    }

    /// To be called before `stop`. Costs nothing when the guest is not slowed.
    pub fn lift(&mut self) -> io::Result<()> {
        match &self.quota {
            Some(quota) if std::mem::take(&mut self.armed) => quota.lift(),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::monotonic;

    /// Processor time of a process, in ticks.
    fn ticks(pid: i32) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Ends with the test, however that ends.
    struct Busy(std::process::Child);

    impl Drop for Busy {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn share(pid: i32, of: Duration) -> f64 {
        let (start, before) = (monotonic(), ticks(pid));
        std::thread::sleep(of);
        (ticks(pid) - before) as f64 * 0.01 / (monotonic() - start).as_secs_f64()
    }

    #[test]
    fn a_busy_thread_is_slowed_and_set_free() {
        let busy = Busy(mycelium_linux::process::command("sh").args(["-c", "while :; do :; done"]).spawn().unwrap());
        let pid = busy.0.id() as i32;
        let mut throttle = VcpuThrottle::new(&format!("/mycelium-test-vcpu-{pid}"), pid, &[pid]);
        if throttle.quota.is_some() {
            throttle.begin(0.9, Duration::from_millis(20)).unwrap();
            let slowed = share(pid, Duration::from_millis(600));
            assert!(slowed < 0.2, "a share of {slowed}");
            throttle.lift().unwrap();
            // Other tests want processors too: sooner or later it gets its turn.
            let begun = monotonic();
            while share(pid, Duration::from_millis(600)) < slowed * 1.5 {
                assert!(
                    monotonic() - begun < Duration::from_secs(60),
                    "no more than a share of {slowed} after it was freed"
                );
            }
        }
    }

    #[test]
    fn without_control_groups_the_guest_is_held() {
        let mut throttle = VcpuThrottle::by_holding();
        let held = |throttle: &mut VcpuThrottle, i| throttle.begin(i, Duration::from_millis(10)).unwrap().as_millis();
        assert_eq!([0.0, 0.5, 0.9, f64::NAN].map(|i| held(&mut throttle, i)), [0, 10, 90, 0]);
    }
}
