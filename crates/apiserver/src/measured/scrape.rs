//! Asking pods for their metrics, and what is remembered of their counters between two questions.
//!
//! A pod is asked only while somebody, for instance an autoscaler, wants one of its metrics: then every five seconds, so that
//! a rate is of the last few. Only the sums of the metrics that are wanted are remembered.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{Request, header};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::exposition::{Exposition, Kind};
use crate::body;

/// A pod that takes longer says nothing.
const PATIENCE: Duration = Duration::from_secs(3);
/// Nothing beyond this is read of its answer.
const BYTES_MAX: usize = 8 << 20;
/// A rate is taken over this time at least, if there was a look so long ago.
const WINDOW_MIN: f64 = 5.0;
/// An older look tells nothing about now.
const WINDOW_MAX: f64 = 90.0;
/// Names of a container's port that serves metrics, the likeliest first.
const PORTS: [&str; 5] = ["metrics", "http-metrics", "prometheus", "http", "web"];

/// Where a pod exposes its metrics: `host:port`, and the path. None if it does not, or does not run.
pub fn place(pod: &Value) -> Option<(String, String)> {
    let annotation = |name: &str| pod["metadata"]["annotations"][format!("prometheus.io/{name}")].as_str();
    if annotation("scrape") == Some("false") || pod["status"]["phase"] != "Running" {
        return None;
    }
    let host = pod["status"]["podIP"].as_str().filter(|ip| !ip.is_empty())?;
    let containers = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ports: Vec<&Value> = containers.iter().flat_map(|c| c["ports"].as_array().into_iter().flatten()).collect();
    let named = || PORTS.iter().find_map(|name| ports.iter().find(|port| port["name"] == *name));
    let declared =
        || named().or(ports.first().filter(|_| annotation("scrape") == Some("true")))?["containerPort"].as_u64();
    let port = annotation("port").and_then(|port| port.parse().ok()).or_else(declared)?;
    let path = annotation("path").unwrap_or("/metrics");
    let slash = if path.starts_with('/') { "" } else { "/" };
    Some((format!("{host}:{port}"), format!("{slash}{path}")))
}

/// Asks.
pub async fn ask(authority: &str, path: &str) -> Result<Exposition, String> {
    let text = tokio::time::timeout(PATIENCE, fetch(authority, path)).await;
    text.unwrap_or_else(|_| Err("no answer in time".into())).map(|text| Exposition::parse(&text))
}

async fn fetch(authority: &str, path: &str) -> Result<String, String> {
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::ACCEPT, "text/plain;version=0.0.4")
        .header(header::CONNECTION, "close")
        .body(body::empty())
        .map_err(|error| error.to_string())?;
    let stream = TcpStream::connect(authority).await.map_err(|error| error.to_string())?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let answer = async {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("the answer is {}", answer.status()));
        }
        let bytes = Limited::new(answer.into_body(), BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&bytes.to_bytes()).into_owned())
    };
    let answer = answer.await;
    connection.abort();
    answer
}

/// What a metric's name stands for in what a pod exposes.
#[derive(Clone, Debug, PartialEq)]
pub enum Meaning {
    /// A value as it is.
    Value(f64),
    /// How fast this grows, per second.
    Rate(f64),
}

/// Finds a metric. `X` is the value of the series `X`, or how fast it grows if it is a counter; failing that, how fast the
/// counter `X_total` grows. `X_per_second` is how fast `X_total` or `X` grows. Series that differ in labels only are summed.
pub fn find(exposed: &Exposition, metric: &str, wanted: &dyn Fn(&BTreeMap<String, String>) -> bool) -> Option<Meaning> {
    if let Some(sum) = exposed.sum(metric, wanted) {
        let grows = exposed.kind(metric) == Kind::Counter;
        return Some(if grows { Meaning::Rate(sum) } else { Meaning::Value(sum) });
    }
    let stem = metric.strip_suffix("_per_second");
    let counted = format!("{}_total", stem.unwrap_or(metric));
    let sum = exposed.sum(&counted, wanted).or_else(|| exposed.sum(stem?, wanted));
    sum.map(Meaning::Rate)
}

/// Looks at one counter.
type Looks = VecDeque<(Timestamp, f64)>;

/// A question that nobody has asked for this long is forgotten.
const WANTED_FOR: Duration = Duration::from_secs(60);

/// What was asked of late, and counters that were looked at, by pod and question.
#[derive(Default)]
pub struct Memory {
    asked: Mutex<BTreeMap<String, Instant>>,
    looks: Mutex<BTreeMap<(String, String), Looks>>,
}

impl Memory {
    /// Notes that something was asked. Tells whether it is new.
    pub fn ask(&self, question: &str) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.insert(question.to_owned(), Instant::now()).is_none()
    }

    /// Whether it was asked of late; it is forgotten otherwise.
    pub fn is_wanted(&self, question: &str) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = asked.get(question).is_some_and(|at| at.elapsed() < WANTED_FOR);
        if !wanted {
            asked.remove(question);
        }
        wanted
    }

    /// Notes a look; gives the rate per second since an earlier one, and over how many seconds.
    pub fn rate(&self, pod: &str, question: &str, now: Timestamp, counter: f64) -> Option<(f64, f64)> {
        let mut all = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let age = |at: Timestamp| now.duration_since(at).as_secs_f64();
        all.retain(|_, looks| looks.back().is_some_and(|(at, _)| age(*at) <= WINDOW_MAX));
        let looks = all.entry((pod.to_owned(), question.to_owned())).or_default();
        // What has become less belongs to a program that started anew: it has no past.
        looks.retain(|(at, before)| age(*at) <= WINDOW_MAX && *before <= counter);
        let long_enough = looks.iter().rev().find(|(at, _)| age(*at) >= WINDOW_MIN);
        let base = long_enough.or(looks.front()).copied().filter(|(at, _)| age(*at) > 0.0);
        if looks.back().is_none_or(|(at, _)| age(*at) >= WINDOW_MIN / 2.0) {
            looks.push_back((now, counter));
        }
        base.map(|(at, before)| ((counter - before) / age(at), age(at)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_stand_for_values_and_rates() {
        let exposed = Exposition::parse(
            "# TYPE queue gauge\nqueue 3\nhttp_requests_total{code=\"200\"} 8\nhttp_requests_total{code=\"500\"} 2\n\
             # TYPE ticks counter\nticks 5\n",
        );
        let all = |_: &BTreeMap<String, String>| true;
        let meaning = |metric: &str| find(&exposed, metric, &all);
        assert_eq!(meaning("queue"), Some(Meaning::Value(3.0)));
        for metric in ["http_requests_total", "http_requests", "http_requests_per_second"] {
            assert_eq!(meaning(metric), Some(Meaning::Rate(10.0)), "{metric}");
        }
        assert_eq!(meaning("ticks"), Some(Meaning::Rate(5.0)));
        assert_eq!(meaning("ticks_per_second"), Some(Meaning::Rate(5.0)));
        assert_eq!(meaning("nothing"), None);
        let bad = |labels: &BTreeMap<String, String>| labels.get("code").is_some_and(|code| code == "500");
        assert_eq!(find(&exposed, "http_requests", &bad), Some(Meaning::Rate(2.0)));
    }

    #[test]
    fn rates_are_of_late_and_start_anew_with_the_program() {
        let memory = Memory::default();
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        assert_eq!(memory.rate("p", "m", at(0), 100.0), None);
        assert_eq!(memory.rate("p", "m", at(1), 102.0), Some((2.0, 1.0)));
        assert_eq!(memory.rate("p", "m", at(15), 145.0), Some((3.0, 15.0)));
        assert_eq!(memory.rate("p", "m", at(30), 145.0), Some((0.0, 15.0)));
        assert_eq!(memory.rate("p", "m", at(31), 1.0), None);
        assert_eq!(memory.rate("q", "m", at(32), 1.0), None);
    }

    #[test]
    fn a_pod_says_where_it_exposes() {
        let pod = |annotations: Value, ports: Value| {
            json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"ports": ports}]},
                "status": {"phase": "Running", "podIP": "10.0.0.1"}})
        };
        let of = |annotations, ports| place(&pod(annotations, ports)).map(|(host, path)| format!("{host}{path}"));
        let ports = json!([{"containerPort": 80}, {"name": "http", "containerPort": 8080}]);
        assert_eq!(of(json!({}), ports.clone()).as_deref(), Some("10.0.0.1:8080/metrics"));
        let own = json!({"prometheus.io/port": "9", "prometheus.io/path": "m"});
        assert_eq!(of(own, ports.clone()).as_deref(), Some("10.0.0.1:9/m"));
        assert_eq!(of(json!({"prometheus.io/scrape": "false"}), ports), None);
        let unnamed = json!([{"containerPort": 80}]);
        assert_eq!(of(json!({}), unnamed.clone()), None);
        assert_eq!(of(json!({"prometheus.io/scrape": "true"}), unnamed).as_deref(), Some("10.0.0.1:80/metrics"));
    }
}
