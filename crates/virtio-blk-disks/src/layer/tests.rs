// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every layer, over a disk that notes what reaches it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use virtio_blk_core::disk::{
    Caps, Completion, ContentStamp, Disk, DiskError, DiskEvent, DiskListener, Execute, Extent,
    FoundBitmap, Handover, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use crate::policy::ErrorPolicy;
use crate::power_cut::PowerCutDisk;
use crate::stack::{Groups, LayerArg, Stack};
use crate::throttle::{Limits, Rate};
use crate::{
    ArgError, DirtyDisk, FaultDisk, FaultPlan, MeterDisk, PolicyDisk, SwitchDisk, ThrottleDisk,
    ThrottleGroup, VerifyDisk,
};

/// Disks that are no layers.
const ENDS: [&str; 3] = ["MemoryDisk", "NullDisk", "RawDisk"];

/// The methods of the contract that no layer may answer by itself.
const PASSED_ON: [&str; 9] = [
    "flush_error",
    "activate",
    "deactivate",
    "refresh",
    "resize",
    "extents",
    "stored_bitmap",
    "listen",
    "release_held",
];

/// Those that [`everything_else_still_works`] and the layers' own tests are about.
const OTHERS: [&str; 10] = [
    "handover",
    "caps",
    "open_queue",
    "submit",
    "execute",
    "flush_batch",
    "reap",
    "wait",
    "deadline",
    "cancel",
];

/// Notes what it is asked for.
#[derive(Clone, Default)]
struct Probe(Arc<Mutex<Vec<&'static str>>>);

impl Probe {
    fn note(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
    }

    /// What was asked for since the last time.
    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Disk for Probe {
    fn caps(&self) -> Caps {
        Caps {
            flush: true,
            max_queues: 8,
            ..Caps::basic(2048)
        }
    }

    fn open_queue(&self, _: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Ok(Box::new(ProbeQueue {
            probe: self.clone(),
            released: false,
            ops: Vec::new(),
        }))
    }

    fn flush_error(&self) -> Option<DiskError> {
        self.note("flush_error");
        Some(DiskError::FlushLost { errno: libc::EIO })
    }

    fn activate(&self) -> Result<(), DiskError> {
        self.note("activate");
        Err(DiskError::Config("activate".to_owned()))
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        self.note("deactivate");
        Err(DiskError::Config("deactivate".to_owned()))
    }

    fn handover(&self) -> Handover {
        Handover::Held(Some(ContentStamp([7; 4])))
    }

    fn refresh(&self) -> Result<(), DiskError> {
        self.note("refresh");
        Err(DiskError::Config("refresh".to_owned()))
    }

    fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        self.note("resize");
        assert_eq!(bytes, 4096);
        Err(DiskError::Config("resize".to_owned()))
    }

    fn extents(&self, range: Range<u64>, most: usize) -> Result<Vec<Extent>, DiskError> {
        self.note("extents");
        assert_eq!((range, most), (512..1024, 7));
        Err(DiskError::Config("extents".to_owned()))
    }

    /// There is one that can't be used. Layers that ask for their own when they are made find none.
    fn stored_bitmap(&self, name: &str) -> Result<Option<FoundBitmap>, DiskError> {
        if name != "stored" {
            return Ok(None);
        }
        self.note("stored_bitmap");
        Err(DiskError::Config("stored_bitmap".to_owned()))
    }

    fn listen(&self, listener: DiskListener) {
        self.note("listen");
        listener(DiskEvent::MediaError);
    }
}

/// Completes nothing before it is told to release what it holds, and takes what it is offered.
struct ProbeQueue {
    probe: Probe,
    released: bool,
    ops: Vec<Op>,
}

impl IoQueue for ProbeQueue {
    fn submit(&mut self, op: Op) -> Submit {
        self.ops.push(op);
        Submit::Queued
    }

    fn execute(&mut self, kind: &OpKind, _: &IoBuf, token: Option<Token>) -> Execute {
        let Some(token) = token else {
            return Execute::Declined;
        };
        self.ops.push(Op {
            token,
            kind: *kind,
            buf: IoBuf::new(),
        });
        Execute::Taken
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        if !self.released {
            return Ok(0);
        }
        let count = self.ops.len();
        done.extend(self.ops.drain(..).map(|op| op.complete(Ok(()))));
        Ok(count)
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Poll
    }

    fn release_held(&mut self) {
        self.probe.note("release_held");
        self.released = true;
    }
}

/// One of each layer that a stack has by name.
fn named() -> Vec<LayerArg> {
    let texts = [
        "throttle=iops:1",
        "dirty=a",
        "errors=rerror:stop/werror:stop",
        "meter",
        "verify",
        "fault=delay:3600/reorder:on",
    ];
    let args: Vec<LayerArg> = texts.iter().map(|text| text.parse().unwrap()).collect();
    // A layer that is added to the table belongs into the list above.
    let Err(ArgError::Layer { known, .. }) = "nothing".parse::<LayerArg>() else {
        panic!("it is no layer");
    };
    for name in known.split([',', ' ']) {
        let is_name = !["", "or", "rerror", "werror"].contains(&name);
        assert!(
            !is_name || args.iter().any(|arg| arg.name() == name),
            "{name}"
        );
    }
    args
}

/// Every layer there is, over the probe, by the name of its type.
fn layers(probe: &Probe) -> Vec<(&'static str, Arc<dyn Disk>)> {
    let inner: Arc<dyn Disk> = Arc::new(probe.clone());
    let limits = Limits {
        iops: Some(Rate::new(1)),
        ..Limits::default()
    };
    let group = ThrottleGroup::new(limits).unwrap();
    let hour = std::time::Duration::from_secs(3600);
    let plan = FaultPlan::new(1).delay_time(hour..=hour).reorder();
    let dirty = DirtyDisk::new(inner.clone());
    dirty.start("a", 512).unwrap();
    vec![
        (
            "ThrottleDisk",
            Arc::new(ThrottleDisk::new(inner.clone(), group)),
        ),
        (
            "SwitchDisk",
            Arc::new(SwitchDisk::new(inner.clone()).unwrap()),
        ),
        ("DirtyDisk", Arc::new(dirty)),
        (
            "PolicyDisk",
            Arc::new(PolicyDisk::new(inner.clone(), ErrorPolicy::default())),
        ),
        ("MeterDisk", Arc::new(MeterDisk::new(inner.clone()))),
        ("VerifyDisk", Arc::new(VerifyDisk::new(inner.clone()))),
        ("FaultDisk", Arc::new(FaultDisk::new(inner.clone(), plan))),
        ("PowerCutDisk", Arc::new(PowerCutDisk::new(inner))),
    ]
}

/// The layers one by one, and all that have names at once, changeable or not.
fn all(probe: &Probe) -> Vec<(&'static str, Arc<dyn Disk>)> {
    let mut all = layers(probe);
    let base: Arc<dyn Disk> = Arc::new(probe.clone());
    let stack = Stack::fixed(base.clone(), &named(), Groups::default()).unwrap();
    all.push(("a stack", stack.disk()));
    let stack = Stack::live(base, &named(), Groups::default()).unwrap();
    all.push(("a live stack", stack.disk()));
    all
}

fn write(token: u64) -> Op {
    Op {
        token: Token(token),
        kind: OpKind::Write {
            offset: token * 512,
            fua: false,
        },
        buf: IoBuf::from_vec(vec![0; 512]),
    }
}

/// The names after `marker` in a source file, each to the first character that belongs to none.
fn names_after<'a>(text: &'a str, marker: &'a str) -> impl Iterator<Item = String> + 'a {
    text.split(marker).skip(1).map(|rest| {
        rest.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    })
}

fn sources(directory: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("tests") {
            sources(&path, found);
        } else if path.is_file() && !path.ends_with("tests.rs") {
            found.push(std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn the_table_has_every_layer() {
    let mut texts = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut texts,
    );
    let is_disk = |name: &String| name.ends_with("Disk");
    let disks = texts
        .iter()
        .flat_map(|text| names_after(text, " Disk for "))
        .filter(is_disk);
    let by_layer = texts
        .iter()
        .flat_map(|text| names_after(text, "impl Layer for "))
        .map(|name| format!("{name}Disk"));
    let implement: BTreeSet<String> = disks.chain(by_layer).collect();
    let known = layers(&Probe::default()).into_iter().map(|(name, _)| name);
    let known: BTreeSet<String> = known.chain(ENDS).map(str::to_owned).collect();
    assert_eq!(implement, known);
}

#[test]
fn the_table_has_the_whole_contract() {
    let contract = Path::new(env!("CARGO_MANIFEST_DIR")).join("../virtio-blk-core/src/disk/mod.rs");
    let text = std::fs::read_to_string(contract).unwrap();
    let (_, traits) = text.split_once("pub trait Disk:").unwrap();
    let methods: BTreeSet<String> = names_after(traits, "\n    fn ").collect();
    let known: BTreeSet<String> = PASSED_ON
        .into_iter()
        .chain(OTHERS)
        .map(str::to_owned)
        .collect();
    assert_eq!(methods, known);
}

#[test]
fn the_control_side_reaches_the_disk() {
    let probe = Probe::default();
    for (name, disk) in all(&probe) {
        probe.take();
        let lost = disk.flush_error();
        assert!(
            matches!(lost, Some(DiskError::FlushLost { errno: libc::EIO })),
            "{name}: {lost:?}"
        );
        for (what, result) in [
            ("activate", disk.activate()),
            ("deactivate", disk.deactivate()),
            ("refresh", disk.refresh()),
            ("resize", disk.resize(4096)),
            ("extents", disk.extents(512..1024, 7).map(drop)),
            ("stored_bitmap", disk.stored_bitmap("stored").map(drop)),
        ] {
            let error = result.unwrap_err().to_string();
            assert_eq!(error, what, "{name}");
        }
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ears = heard.clone();
        disk.listen(Arc::new(move |event| ears.lock().unwrap().push(event)));
        assert_eq!(*heard.lock().unwrap(), [DiskEvent::MediaError], "{name}");
        let asked = probe.take();
        let (_, control) = PASSED_ON.split_last().unwrap();
        assert_eq!(asked, control, "{name}");
    }
}

#[test]
fn what_is_held_is_let_go_in_order_and_nothing_is_held_afterwards() {
    let probe = Probe::default();
    for (name, disk) in all(&probe) {
        let mut queue = disk.open_queue(8).unwrap();
        let mut done = Vec::new();
        for token in 0..3 {
            assert!(
                matches!(queue.submit(write(token)), Submit::Queued),
                "{name}"
            );
        }
        queue.flush_batch().unwrap();
        assert_eq!(queue.reap(&mut done).unwrap(), 0, "{name}");
        probe.take();
        queue.release_held();
        assert_eq!(probe.take(), ["release_held"], "{name}");
        for token in 3..6 {
            assert!(
                matches!(queue.submit(write(token)), Submit::Queued),
                "{name}"
            );
        }
        queue.flush_batch().unwrap();
        // What the layers finish may take two looks: one below, one here.
        for _ in 0..10 {
            queue.reap(&mut done).unwrap();
        }
        let mut tokens: Vec<u64> = done.iter().map(|completion| completion.token.0).collect();
        if name != "FaultDisk" && !name.contains("stack") {
            assert_eq!(tokens, [0, 1, 2, 3, 4, 5], "{name}");
        }
        tokens.sort_unstable();
        assert_eq!(tokens, [0, 1, 2, 3, 4, 5], "{name}");
        assert!(done.iter().all(|completion| completion.result.is_ok()));
        let later = std::time::Instant::now() + std::time::Duration::from_secs(60);
        assert!(queue.deadline().is_none_or(|at| at < later), "{name}");
    }
}

#[test]
fn everything_else_still_works() {
    let probe = Probe::default();
    for (name, disk) in all(&probe) {
        assert_eq!(disk.caps().capacity, probe.caps().capacity, "{name}");
        assert_eq!(disk.handover(), probe.handover(), "{name}");
        let mut queue = disk.open_queue(2).unwrap();
        queue.release_held();
        let buf = IoBuf::from_vec(vec![0; 512]);
        assert!(
            queue
                .execute(&OpKind::Read { offset: 0 }, &buf, None)
                .done()
                .is_none()
        );
        assert!(matches!(queue.submit(write(1)), Submit::Queued), "{name}");
        queue.cancel(Token(1));
        queue.flush_batch().unwrap();
        let mut done = Vec::new();
        while done.is_empty() {
            queue.reap(&mut done).unwrap();
        }
        assert_eq!(done[0].token, Token(1), "{name}");
    }
}

#[test]
fn what_is_taken_completes_once_under_its_own_token() {
    let probe = Probe::default();
    let mut taken = Vec::new();
    for (name, disk) in all(&probe) {
        let mut queue = disk.open_queue(2).unwrap();
        let (kind, buf) = (OpKind::Read { offset: 0 }, IoBuf::zeroed(512));
        let token = Token(1 << 40);
        match queue.execute(&kind, &buf, Some(token)) {
            Execute::Taken => taken.push(name),
            Execute::Declined => {
                let submitted = queue.submit(Op { token, kind, buf });
                assert!(matches!(submitted, Submit::Queued), "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
        queue.flush_batch().unwrap();
        queue.release_held();
        let mut done = Vec::new();
        for _ in 0..10 {
            queue.reap(&mut done).unwrap();
        }
        let tokens: Vec<Token> = done.iter().map(|completion| completion.token).collect();
        assert_eq!(tokens, [token], "{name}");
    }
    assert!(taken.contains(&"ThrottleDisk"), "{taken:?}");
}
