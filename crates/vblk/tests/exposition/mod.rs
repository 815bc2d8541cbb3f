// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A strict parser of the OpenMetrics 1.0 text format, after its specification: what an ingestor may refuse, it refuses.
//! It shares nothing with what writes the text.

use std::collections::{BTreeMap, HashSet};

/// The type of a metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Unknown,
    Counter,
    Gauge,
    Histogram,
    Info,
}

/// A line with a value.
#[derive(Clone, Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Sample {
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }

    /// The upper end of a bucket.
    pub fn end(&self) -> Option<f64> {
        number(self.label("le")?).ok()
    }
}

/// A metric family.
#[derive(Clone, Debug)]
pub struct Family {
    pub name: String,
    pub kind: Kind,
    pub samples: Vec<Sample>,
}

type Wrong = String;

fn number(text: &str) -> Result<f64, Wrong> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        "NaN" => Ok(f64::NAN),
        _ => {
            let is_plain = text
                .chars()
                .all(|c| c.is_ascii_digit() || "+-.eE".contains(c));
            let parsed = text.parse().ok().filter(|_| is_plain);
            parsed.ok_or_else(|| format!("`{text}` is no number"))
        }
    }
}

fn is_name(text: &str, more: &str) -> bool {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
    text.chars().all(is_fit) && text.chars().next().is_some_and(|c| !c.is_ascii_digit())
}

/// What stands between quotes, and the rest behind them.
fn quoted(text: &str) -> Result<(String, &str), Wrong> {
    let text = text
        .strip_prefix('"')
        .ok_or("a label's value has no quotes")?;
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => value.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, c @ ('\\' | '"'))) => c,
                other => return Err(format!("{other:?} is escaped")),
            }),
            c => value.push(c),
        }
    }
    Err("a label's value has no end".into())
}

/// Labels after the brace, and the rest behind the other.
fn labels(mut text: &str) -> Result<(BTreeMap<String, String>, &str), Wrong> {
    let mut labels = BTreeMap::new();
    loop {
        if let Some(rest) = text.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, rest) = text.split_once('=').ok_or("a label has no value")?;
        if !is_name(name, "_") {
            return Err(format!("`{name}` is no label's name"));
        }
        let (value, rest) = quoted(rest)?;
        if labels.insert(name.to_owned(), value).is_some() {
            return Err(format!("the label {name} is there twice"));
        }
        text = match rest.strip_prefix(',') {
            Some(more) if !more.starts_with('}') => more,
            Some(_) => return Err("a comma before the brace".into()),
            None => rest,
        };
    }
}

fn sample(line: &str) -> Result<Sample, Wrong> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, rest) = line.split_at(end);
    if !is_name(name, "_:") {
        return Err(format!("`{name}` is no metric's name"));
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value: number(value)?,
    })
}

/// The endings that a family's samples have.
fn endings(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Counter => &["_total"],
        Kind::Histogram => &["_bucket", "_sum", "_count"],
        Kind::Info => &["_info"],
        Kind::Gauge | Kind::Unknown => &[""],
    }
}

/// The buckets of each series: they rise, end with `+Inf`, and that is the count.
fn check_histogram(family: &Family) -> Result<(), Wrong> {
    let mut series: BTreeMap<Vec<(&str, &str)>, Vec<&Sample>> = BTreeMap::new();
    for sample in &family.samples {
        let labels = sample.labels.iter().filter(|(name, _)| *name != "le");
        let labels = labels.map(|(name, value)| (name.as_str(), value.as_str()));
        series.entry(labels.collect()).or_default().push(sample);
    }
    for (labels, samples) in series {
        let of = |ending: &str| {
            let named = samples
                .iter()
                .filter(|one| one.name == format!("{}{ending}", family.name));
            named.copied().collect::<Vec<_>>()
        };
        let buckets = of("_bucket");
        let ends: Option<Vec<f64>> = buckets.iter().map(|one| one.end()).collect();
        let ends = ends.ok_or_else(|| format!("{labels:?}: a bucket without le"))?;
        if !ends.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err(format!("{labels:?}: the ends {ends:?} don't rise"));
        }
        if ends.last() != Some(&f64::INFINITY) {
            return Err(format!(
                "{labels:?}: the last bucket is {:?}, not +Inf",
                ends.last()
            ));
        }
        if !buckets
            .windows(2)
            .all(|pair| pair[0].value <= pair[1].value)
        {
            return Err(format!("{labels:?}: the buckets are not cumulative"));
        }
        match (of("_count").as_slice(), of("_sum").as_slice()) {
            ([count], [sum]) if Some(count.value) == buckets.last().map(|one| one.value) => {
                if sum.value.is_nan() || sum.value < 0.0 {
                    return Err(format!("{labels:?}: the sum is {}", sum.value));
                }
            }
            other => return Err(format!("{labels:?}: count and sum are {other:?}")),
        }
    }
    Ok(())
}

fn check(family: &Family, unit: Option<&str>) -> Result<(), Wrong> {
    if let Some(unit) = unit
        && !family.name.ends_with(&format!("_{unit}"))
    {
        return Err(format!("{} does not end with its unit {unit}", family.name));
    }
    let mut seen = HashSet::new();
    for sample in &family.samples {
        if !seen.insert((&sample.name, &sample.labels)) {
            return Err(format!("{sample:?} is there twice"));
        }
        let is_counter = matches!(family.kind, Kind::Counter | Kind::Histogram);
        if is_counter && (sample.value.is_nan() || sample.value < 0.0) {
            return Err(format!("{sample:?}"));
        }
    }
    match family.kind {
        Kind::Histogram => check_histogram(family),
        _ => Ok(()),
    }
}

/// The families of a text.
pub fn parse(text: &str) -> Result<Vec<Family>, Wrong> {
    let text = text
        .strip_suffix("# EOF\n")
        .ok_or("it does not end with # EOF")?;
    let mut families: Vec<Family> = Vec::new();
    let mut unit: Option<String> = None;
    let mut said = HashSet::new();
    for line in text.split_terminator('\n') {
        if let Some(about) = line.strip_prefix("# ") {
            let mut words = about.splitn(3, ' ');
            let (what, name) = (
                words.next().unwrap_or_default(),
                words.next().ok_or("no name")?,
            );
            let value = words.next().unwrap_or_default();
            if families.last().is_none_or(|last| last.name != name) {
                if let Some(last) = families.last() {
                    check(last, unit.take().as_deref())?;
                }
                if families.iter().any(|family| family.name == name) {
                    return Err(format!("{name} is there twice"));
                }
                if !is_name(name, "_:") {
                    return Err(format!("`{name}` is no family's name"));
                }
                families.push(Family {
                    name: name.to_owned(),
                    kind: Kind::Unknown,
                    samples: Vec::new(),
                });
            }
            let family = families.last_mut().ok_or("no family")?;
            if !family.samples.is_empty() || !said.insert((what.to_owned(), name.to_owned())) {
                return Err(format!("{line}: too late or twice"));
            }
            match what {
                "HELP" => {}
                "UNIT" => unit = Some(value.to_owned()),
                "TYPE" => {
                    family.kind = match value {
                        "counter" => Kind::Counter,
                        "gauge" => Kind::Gauge,
                        "histogram" => Kind::Histogram,
                        "info" => Kind::Info,
                        "unknown" => Kind::Unknown,
                        _ => return Err(format!("{line}: no type")),
                    };
                }
                _ => return Err(format!("{line}: HELP, UNIT and TYPE may stand here")),
            }
            continue;
        }
        let sample = sample(line).map_err(|why| format!("{line}: {why}"))?;
        let family = families.last_mut().ok_or("a sample without a family")?;
        let ending = sample.name.strip_prefix(family.name.as_str());
        if !ending.is_some_and(|ending| endings(family.kind).contains(&ending)) {
            return Err(format!(
                "{line}: this is no sample of {} {:?}",
                family.name, family.kind
            ));
        }
        family.samples.push(sample);
    }
    if let Some(last) = families.last() {
        check(last, unit.take().as_deref())?;
    }
    Ok(families)
}

#[test]
fn wrong_texts_are_refused() {
    let histogram = |last: &str| {
        format!(
            "# TYPE a histogram\na_sum 1.0\na_count 2\na_bucket{{le=\"1.0\"}} 1\na_bucket{{le=\"{last}\"}} 2\n# EOF\n"
        )
    };
    assert!(parse(&histogram("+Inf")).is_ok());
    for wrong in [
        histogram("1.7976931348623157e308"),
        histogram("0.5"),
        "a 1\n# EOF\n".to_owned(),
        "# TYPE a gauge\na 1\n".to_owned(),
        "# TYPE a gauge\na{b=\"c} 1\n# EOF\n".to_owned(),
        "# TYPE a gauge\na{b=\"c\"} 1\na{b=\"c\"} 1\n# EOF\n".to_owned(),
        "# TYPE a gauge\n\n# EOF\n".to_owned(),
        "# TYPE a counter\na 1\n# EOF\n".to_owned(),
        "# TYPE a counter\n# UNIT a seconds\na_total 1\n# EOF\n".to_owned(),
    ] {
        assert!(parse(&wrong).is_err(), "{wrong}");
    }
}
