// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A layer of another crate: registered in a table, it is read, named, built and found like those of this crate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Deserialize;
use virtio_blk_core::disk::{
    Caps, Completion, Disk, DiskError, Execute, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};
use virtio_blk_disks::disk_arg::tree::{Entry, Key, Tree, Value};
use virtio_blk_disks::layer::{Layer, Layered};
use virtio_blk_disks::meter::MeterOptions;
use virtio_blk_disks::stack::{
    self, Groups, LayerArg, LayerContext, LayerKind, LayerKinds, LayerOptions, Shape, Stack,
    StackError,
};
use virtio_blk_disks::{ArgError, StackArg};

use common::{read, write};

/// Lets so many writes pass, whatever their size.
#[derive(Clone)]
struct Quota {
    left: Arc<AtomicU64>,
}

impl Layer for Quota {
    fn open_queue(
        &self,
        inner: Box<dyn IoQueue>,
        _: u16,
        _: &Caps,
    ) -> Result<Box<dyn IoQueue>, DiskError> {
        let left = self.left.clone();
        Ok(Box::new(QuotaQueue { left, inner }))
    }
}

struct QuotaQueue {
    left: Arc<AtomicU64>,
    inner: Box<dyn IoQueue>,
}

impl QuotaQueue {
    fn may(&self, kind: &OpKind) -> Result<(), DiskError> {
        let OpKind::Write { .. } = kind else {
            return Ok(());
        };
        let one_less = |left: u64| left.checked_sub(1);
        let before = (self.left).fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        before.map_or(Err(DiskError::ReadOnly), |_| Ok(()))
    }
}

impl IoQueue for QuotaQueue {
    fn submit(&mut self, op: Op) -> Submit {
        match self.may(&op.kind) {
            Ok(()) => self.inner.submit(op),
            Err(error) => Submit::Done(op.complete(Err(error))),
        }
    }

    fn execute(&mut self, kind: &OpKind, buf: &IoBuf, token: Option<Token>) -> Execute {
        match kind {
            OpKind::Write { .. } => Execute::Declined,
            _ => self.inner.execute(kind, buf, token),
        }
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.inner.flush_batch()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        self.inner.reap(done)
    }

    fn wait(&self) -> Wait<'_> {
        self.inner.wait()
    }

    fn deadline(&self) -> Option<Instant> {
        self.inner.deadline()
    }

    fn release_held(&mut self) {
        self.inner.release_held();
    }

    fn cancel(&mut self, token: Token) {
        self.inner.cancel(token);
    }
}

/// `quota=NAME[/writes:N]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct QuotaOptions {
    #[serde(skip)]
    name: String,
    writes: u64,
}

impl LayerOptions for QuotaOptions {
    type Layer = Quota;

    const NAME: &'static str = "quota";
    const SHAPE: Shape = Shape::Target("quota=tenant/writes:100");
    const MANUAL: &'static str = "  quota=NAME[/writes:N]   let N writes pass";

    fn set_target(&mut self, target: &str) -> Result<(), ArgError> {
        self.name = target.to_owned();
        Ok(())
    }

    fn target(&self) -> Option<String> {
        Some(self.name.clone())
    }

    fn changed(&self) -> Vec<(&'static str, String)> {
        let writes = (self.writes != 0).then(|| ("writes", self.writes.to_string()));
        writes.into_iter().collect()
    }

    fn identity(&self) -> Option<String> {
        Some(self.name.clone())
    }

    fn build(
        &self,
        inner: Arc<dyn Disk>,
        _: &LayerContext<'_>,
    ) -> Result<Layered<Quota>, StackError> {
        let left = Arc::new(AtomicU64::new(self.writes));
        Ok(Layered::with(Quota { left }, inner))
    }
}

fn table() -> Vec<LayerKind> {
    [stack::OWN, &[LayerKind::of::<QuotaOptions>()]].concat()
}

fn quota(writes: u64) -> LayerArg {
    LayerArg::new(QuotaOptions {
        name: "a".to_owned(),
        writes,
    })
}

#[test]
fn text_and_files_know_it() {
    let table = table();
    let kinds = LayerKinds::new(&table);
    let text = "memory:1M,quota=a/writes:2,meter";
    let arg: StackArg = StackArg::parse(text, kinds).unwrap();
    assert_eq!(
        arg.layers,
        [quota(2), LayerArg::new(MeterOptions::default())]
    );
    assert_eq!(arg.to_string(), text);
    let options: &QuotaOptions = arg.layers[0].options().unwrap();
    assert_eq!((options.name.as_str(), options.writes), ("a", 2));
    // As a file has it.
    let tree = Tree {
        kind: Entry::text("type", "quota"),
        target: Some(Entry::text("name", "a")),
        options: vec![Entry {
            key: Key {
                name: "writes".to_owned(),
                at: 40,
            },
            value: Value::Text("2".to_owned()),
        }],
    };
    assert_eq!(kinds.read(&tree), Ok(quota(2)));
    let mut wrong = tree;
    wrong.options[0].value = Value::Text("two".to_owned());
    let error = kinds.read(&wrong).unwrap_err();
    assert_eq!((error.key.at, error.key.name.as_str()), (40, "writes"));
    // Only with its table.
    assert!(text.parse::<StackArg>().is_err());
    assert!(LayerKinds::default().read(&wrong).is_err());
}

#[test]
fn help_and_errors_name_it() {
    let table = table();
    let kinds = LayerKinds::new(&table);
    let manual = kinds.manual();
    assert!(manual.ends_with(QuotaOptions::MANUAL), "{manual}");
    assert!(manual.starts_with(&LayerKinds::default().manual()));
    for (text, wanted) in [
        ("metre", "or quota"),
        ("quotas=a", "did you mean `quota`"),
        ("quota", "for example quota=tenant/writes:100"),
        ("quota=a/writes:many", "`many` is no value for writes"),
        ("quota=a/reads:1", "it has writes"),
        ("quota=a/writes:1/writes:2", "twice"),
    ] {
        let error = kinds.parse(text).unwrap_err().to_string();
        assert!(error.contains(wanted), "{text}: {error}");
        let stack = StackArg::<virtio_blk_disks::DiskArg>::parse(&format!("null:1M,{text}"), kinds);
        assert!(stack.is_err(), "{text}");
    }
}

#[test]
fn it_works_in_a_stack_and_keeps_what_it_knows() {
    let table = table();
    let kinds = LayerKinds::new(&table);
    let arg: StackArg = StackArg::parse("memory:1M,quota=a/writes:2", kinds).unwrap();
    let stack: Stack = arg.open_live(false, &Groups::default()).unwrap();
    let mut queue = stack.disk().open_queue(4).unwrap();
    write(&mut *queue, 0, vec![1; 512]).unwrap();
    stack
        .change(&[
            kinds.parse("quota=a/writes:2").unwrap(),
            kinds.parse("meter").unwrap(),
        ])
        .unwrap();
    write(&mut *queue, 512, vec![2; 512]).unwrap();
    let error = write(&mut *queue, 1024, vec![3; 512]).unwrap_err();
    assert!(matches!(error, DiskError::ReadOnly), "{error}");
    assert_eq!(read(&mut *queue, 512, 1024).unwrap()[511..513], [2, 0]);
    let found = stack.layer::<Quota>().unwrap();
    assert_eq!(found.layer().left.load(Ordering::Relaxed), 0);
    let twice = [quota(1), quota(2)];
    let error = stack.change(&twice).unwrap_err().to_string();
    assert!(error.contains("twice"), "{error}");
    stack.change(&[]).unwrap();
    assert!(stack.layer::<Quota>().is_none());
    write(&mut *queue, 1024, vec![3; 512]).unwrap();
}
