//! Which objects a command line names: `pods`, `pods a b`, `pod/a svc/b`, `pods,services`, `all`.

use anyhow::{Result, bail};

use super::discovery::{Discovery, Resource};

/// Some objects of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Their resource.
    pub resource: Resource,
    /// Their names; empty means all that the selectors leave.
    pub names: Vec<String>,
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
