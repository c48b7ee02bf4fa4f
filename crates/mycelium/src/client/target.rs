//! Which objects a command line names: `pods`, `pods a b`, `pod/a svc/b`, `pods,services`, `all`.

use anyhow::{Result, bail};

use super::discovery::{Discovery, Resource};
use super::{Cluster, query, text};

/// Some objects of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Their resource.
    pub resource: Resource,
    /// Their names; empty means all that the selectors leave.
    pub names: Vec<String>,
}

impl Target {
    /// The names of the objects, for commands that want to be told which: given, or chosen by labels or as all of the
    /// namespace.
    pub async fn names(&self, cluster: &Cluster, all: bool, selector: Option<&str>) -> Result<Vec<String>> {
        match (self.names.is_empty(), all || selector.is_some()) {
            (true, false) => {
                bail!("say which: names, -l SELECTOR, or --all for every {} of the namespace", self.resource.plural)
            }
            (false, true) => bail!("names and --all or -l exclude each other"),
            (false, false) => Ok(self.names.clone()),
            (true, true) => {
                let query = query(&[("labelSelector", selector.map(str::to_owned))]);
                let list = cluster.get(&format!("{}{query}", self.resource.path(Some(&cluster.namespace)))).await?;
                let items = list["items"].as_array().into_iter().flatten();
                Ok(items.map(|item| text(item, "/metadata/name").to_owned()).collect())
            }
        }
    }
}

/// Reads the words of a command line.
pub fn parse(discovery: &Discovery, words: &[String]) -> Result<Vec<Target>> {
    let Some((first, names)) = words.split_first() else {
        bail!("say what: a resource type such as pods, with names if you like, or TYPE/NAME");
    };
    if words.iter().any(|word| word.contains('/')) {
        return slashed(discovery, words);
    }
    let mut targets = Vec::new();
    for name in first.split(',') {
        let category = discovery.category(name);
        let found = if category.is_empty() { vec![discovery.resolve(name)?] } else { category };
        targets.extend(found.into_iter().map(|resource| Target { resource: resource.clone(), names: names.to_vec() }));
    }
    if targets.len() > 1 && !names.is_empty() {
        bail!("names cannot follow several resource types; write TYPE/NAME for each object");
    }
    Ok(targets)
}

/// `TYPE/NAME` words only; neighbours of one type stay together.
fn slashed(discovery: &Discovery, words: &[String]) -> Result<Vec<Target>> {
    let mut targets: Vec<Target> = Vec::new();
    for word in words {
        let (resource, name) = match word.split_once('/') {
            Some((resource, name)) if !resource.is_empty() && !name.is_empty() && !name.contains('/') => {
                (resource, name)
            }
            _ => bail!("{word:?} is not TYPE/NAME; when one word has a slash, all need one"),
        };
        let resource = discovery.resolve(resource)?;
        match targets.last_mut().filter(|target| target.resource == *resource) {
            Some(target) => target.names.push(name.to_owned()),
            None => targets.push(Target { resource: resource.clone(), names: vec![name.to_owned()] }),
        }
    }
    Ok(targets)
}
