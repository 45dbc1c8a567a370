//! The weather that a test describes: a series per path, or per family of one.
//!
//! Invariant: what is lost is lost for all targets of a round that share a series.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{
    Series, SeriesError, Weather,
    trial::{bad, no_such},
};
use crate::{
    config::{
        trial::{SeriesSpec, TestSpec},
        yaml::Document,
    },
    diag::{self, Diagnostic},
    health::Link,
    units::{Family, Name, Ratio, Span},
    validate::intent::{Path, Site},
};

/// The weather that a test describes.
pub(super) struct Sky<'a> {
    site: &'a Site,
    step: Duration,
    paths: BTreeMap<&'a Name, PathSky>,
}

struct PathSky {
    air: Air,
    /// Families that differ from that.
    families: BTreeMap<Family, Air>,
    carrier: Series<Link>,
    load: Option<Series<Ratio>>,
}

/// What becomes of the probes of a path.
#[derive(Clone)]
struct Air {
    rtt: Series<Span>,
    jitter: Series<Span>,
    loss: Series<Ratio>,
    /// Loss that is due, in parts per million; a probe is lost when it reaches a whole one.
    due: u32,
    round: Option<(Duration, bool)>,
    late: bool,
}

impl Default for PathSky {
    fn default() -> Self {
        let air = Air {
            rtt: Series::constant(Span::from_millis(20)),
            jitter: Series::constant(Span::from_millis(0)),
            loss: Series::constant(Ratio::ZERO),
            due: 0,
            round: None,
            late: false,
        };
        Self { air, families: BTreeMap::new(), carrier: Series::constant(Link::Ready), load: None }
    }
}

/// Takes over a series where one is given.
fn set<T>(
    text: Option<&str>,
    series: &mut Series<T>,
    read: impl Fn(&str) -> Result<Series<T>, SeriesError>,
) -> Result<(), SeriesError> {
    if let Some(text) = text {
        *series = read(text)?;
    }
    Ok(())
}

fn link(word: &str) -> Result<Link, SeriesError> {
    match word {
        "up" => Ok(Link::Ready),
        "down" => Ok(Link::NoCarrier),
        "disabled" => Ok(Link::Disabled),
        "missing" => Ok(Link::Missing),
        _ => Err(SeriesError(format!("`{word}` is no state of a carrier: `up`, `down`, `disabled` or `missing`"))),
    }
}

impl<'a> Sky<'a> {
    pub(super) fn read(document: &Document, site: &'a Site, spec: &TestSpec, found: &mut Vec<Diagnostic>) -> Self {
        let step = spec.step.map_or(Duration::from_secs(1), Span::get);
        if step.is_zero() {
            found.push(bad(document.value_at("/spec/step"), "a step takes time", "write `step: 1s`"));
        }
        let mut paths = BTreeMap::new();
        for (name, series) in &spec.paths {
            let pointer = format!("/spec/paths/{name}");
            match site.paths.get_key_value(name) {
                Some((name, path)) => {
                    found.extend(unweighable(document, &pointer, series, site, &path.from));
                    found.extend(unasked(document, &pointer, series, path));
                    paths.insert(name, PathSky::read(document, &pointer, series, found));
                }
                None => found.push(no_such(document.key_at(&pointer), "path", name, site.paths.keys())),
            }
        }
        for name in site.paths.keys() {
            paths.entry(name).or_default();
        }
        Self { site, step: step.max(Duration::from_millis(1)), paths }
    }

    fn step_at(&self, at: Duration) -> u64 {
        u64::try_from(at.as_nanos() / self.step.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A load that no router could know.
fn unweighable(
    document: &Document,
    pointer: &str,
    series: &SeriesSpec,
    site: &Site,
    endpoint: &Name,
) -> Option<Diagnostic> {
    let fast = site.endpoints.get(endpoint).is_some_and(|e| e.down.is_some() || e.up.is_some());
    (series.load.is_some() && !fast).then(|| {
        let at = document.value_at(&format!("{pointer}/load"));
        let message = format!("nobody could know this: the endpoint `{endpoint}` does not say how fast it is");
        bad(at, message, "add its `bandwidth: {down: 50Mbit, up: 10Mbit}`, or delete this")
    })
}

/// A family that nobody could tell from the other.
fn unasked(document: &Document, pointer: &str, series: &SeriesSpec, path: &Path) -> Option<Diagnostic> {
    let named = [("ipv4", &series.ipv4), ("ipv6", &series.ipv6)].into_iter().find(|(_, spec)| spec.is_some())?;
    apart(document.key_at(&format!("{pointer}/{}", named.0)), path)
}

/// That a path is not probed in both families, if so.
pub(super) fn apart(at: diag::Span, path: &Path) -> Option<Diagnostic> {
    let message = format!("the families of `{}` are not told apart: it has no probe targets of both", path.name);
    let help = "add a target of the other family to its `probe`, or write it of the path";
    (path.probe.families().count() < 2).then(|| bad(at, message, help))
}

impl PathSky {
    fn read(document: &Document, pointer: &str, spec: &SeriesSpec, found: &mut Vec<Diagnostic>) -> Self {
        let mut sky = Self::default();
        let mut read = |field: &str, result: Result<(), SeriesError>, help: &str| {
            if let Err(error) = result {
                found.push(bad(document.value_at(&format!("{pointer}/{field}")), error.to_string(), help));
            }
        };
        let of_path = (spec.rtt.as_deref(), spec.jitter.as_deref(), spec.loss.as_deref());
        sky.air.read("", of_path, &mut read);
        for (field, family, spec) in [("ipv4/", Family::V4, &spec.ipv4), ("ipv6/", Family::V6, &spec.ipv6)] {
            if let Some(spec) = spec {
                let air = sky.families.entry(family).or_insert_with(|| sky.air.clone());
                air.read(field, (spec.rtt.as_deref(), spec.jitter.as_deref(), spec.loss.as_deref()), &mut read);
            }
        }
        let load = spec.load.as_deref().map_or(Ok(None), |text| Series::parse(text).map(Some));
        read("load", load.map(|load| sky.load = load), "write values and steps: `10% x30 95% x30`");
        let links = |text: &str| Series::parse_with(text, link);
        read("carrier", set(spec.carrier.as_deref(), &mut sky.carrier, links), "write `up x30 down x5 up`");
        sky
    }
}

impl Air {
    /// Takes over what is written: round-trip times, jitter and loss, whose fields begin with `whose`.
    fn read(
        &mut self,
        whose: &str,
        (rtt, jitter, loss): (Option<&str>, Option<&str>, Option<&str>),
        read: &mut impl FnMut(&str, Result<(), SeriesError>, &str),
    ) {
        let help = "write values and how many steps each lasts: `20ms x60 400ms x30`";
        read(&format!("{whose}rtt"), set(rtt, &mut self.rtt, Series::parse), help);
        read(&format!("{whose}jitter"), set(jitter, &mut self.jitter, Series::parse), help);
        let help = "write values and how many steps each lasts: `0% x10 40% x20`";
        read(&format!("{whose}loss"), set(loss, &mut self.loss, Series::parse), help);
    }
}

impl Weather for Sky<'_> {
    fn answer(&mut self, path: &Name, target: IpAddr, at: Duration) -> Option<Duration> {
        let step = self.step_at(at);
        let name = self.site.paths.get_key_value(path)?.0;
        let PathSky { air, families, .. } = self.paths.get_mut(name)?;
        let sky = families.get_mut(&Family::of(&target)).unwrap_or(air);
        // What is lost is lost for all targets of a round.
        let lost = match sky.round {
            Some((when, lost)) if when == at => lost,
            _ => {
                sky.due += sky.loss.at(step).ppm();
                sky.late = !sky.late;
                let lost = sky.due >= Ratio::ONE.ppm();
                sky.due -= if lost { Ratio::ONE.ppm() } else { 0 };
                sky.round = Some((at, lost));
                lost
            }
        };
        let late = if sky.late { sky.jitter.at(step).get() } else { Duration::ZERO };
        (!lost).then(|| sky.rtt.at(step).get() + late)
    }

    /// All paths over an endpoint have its load.
    fn load(&self, path: &Name, at: Duration) -> Option<Ratio> {
        let from = &self.site.paths.get(path)?.from;
        let beside = self.site.paths.values().filter(|p| p.from == *from).map(|p| &p.name);
        let load = std::iter::once(path).chain(beside).find_map(|p| self.paths.get(p)?.load.as_ref())?;
        Some(load.at(self.step_at(at)))
    }

    fn links(&self, path: &Name) -> Vec<(Duration, Link)> {
        let Some(sky) = self.paths.get(path) else { return Vec::new() };
        let first = (Duration::ZERO, sky.carrier.at(0));
        let at = |step: u64| self.step.saturating_mul(u32::try_from(step).unwrap_or(u32::MAX));
        let changes = sky.carrier.changes().map(|(step, link)| (at(step), link));
        std::iter::once(first).chain(changes).filter(|(at, link)| !at.is_zero() || *link != Link::Ready).collect()
    }
}
