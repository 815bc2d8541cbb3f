// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--metrics`: the text as a parser of the format takes it, and the server under clients of all kinds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod exposition;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use common::{Server, guest, vblk};
use exposition::{Family, Kind, parse};
use vblk_testing::verify::{self, Config};

fn metered(disk: &str) -> (Server, String) {
    let args = [
        "--json",
        "--queues",
        "4",
        "--metrics",
        "127.0.0.1:0",
        "--disk",
        disk,
    ];
    let mut server = Server::spawn(&args, None, None);
    let address = server.metrics_address();
    server.event("listening");
    (server, address)
}

/// Sends this and reads all that comes: status line and fields, and body.
fn exchange(address: &str, request: &[u8]) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request).unwrap();
    received(stream)
}

fn received(mut stream: TcpStream) -> (String, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{text}"));
    (head.to_owned(), body.to_owned())
}

fn get(address: &str, target: &str) -> (String, String) {
    let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    exchange(address, request.as_bytes())
}

/// The families that a fetch shows.
fn fetch(address: &str) -> Vec<Family> {
    let (head, body) = get(address, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    parse(&body).unwrap_or_else(|why| panic!("{why}\n{body}"))
}

/// The estimate that Prometheus' `histogram_quantile` makes, of the buckets of all series together.
fn quantile(family: &Family, fraction: f64) -> f64 {
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for sample in family
        .samples
        .iter()
        .filter(|one| one.name.ends_with("_bucket"))
    {
        let end = sample.end().unwrap();
        match buckets.iter_mut().find(|(known, _)| *known == end) {
            Some((_, count)) => *count += sample.value,
            None => buckets.push((end, sample.value)),
        }
    }
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (last, all) = *buckets.last().unwrap();
    if last != f64::INFINITY {
        return f64::NAN;
    }
    let (mut start, mut before) = (0.0, 0.0);
    for (end, count) in buckets {
        if count >= fraction * all {
            return start + (end.min(1e9) - start) * (fraction * all - before) / (count - before);
        }
        (start, before) = (end, count);
    }
    f64::NAN
}

#[test]
fn the_text_is_what_a_parser_takes_and_quantiles_are_numbers() {
    let (server, address) = metered("memory:1M,throttle=iops:1000000,dirty=backup");
    // Also before anything happened.
    fetch(&address);
    let mut client = server.connect();
    let (_guest, mut queue) = guest(&mut client);
    for sector in 0..100 {
        queue.write(sector, &[1; 512]).unwrap();
        queue.read(sector, 512).unwrap();
    }
    let families = fetch(&address);
    let family = |name: &str| {
        let found = families.iter().find(|family| family.name == name);
        found.unwrap_or_else(|| panic!("no {name}"))
    };
    let latency = family("vblk_latency_seconds");
    assert_eq!(latency.kind, Kind::Histogram);
    for fraction in [0.5, 0.99, 0.9999] {
        let seconds = quantile(latency, fraction);
        assert!(seconds > 0.0 && seconds < 60.0, "{seconds}");
    }
    let counts = latency
        .samples
        .iter()
        .filter(|one| one.name.ends_with("_count"));
    assert_eq!(counts.map(|one| one.value).sum::<f64>(), 200.0);
    let operations = family("vblk_operations");
    assert_eq!(operations.kind, Kind::Counter);
    assert_eq!(
        operations.samples.iter().map(|one| one.value).sum::<f64>(),
        200.0
    );
    assert_eq!(
        family("vblk_capacity_bytes").samples[0].value,
        f64::from(1 << 20)
    );
    assert_eq!(
        family("vblk_dirty_bytes").samples[0].label("bitmap"),
        Some("backup")
    );
}

#[test]
fn each_request_gets_its_answer() {
    let (_server, address) = metered("memory:1M");
    for target in [
        "/metrics?x=1",
        "/metrics?",
        &format!("http://{address}/metrics"),
    ] {
        assert!(
            get(&address, target).0.starts_with("HTTP/1.1 200 "),
            "{target}"
        );
    }
    let (head, body) = exchange(&address, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .unwrap();
    assert!(
        length.parse::<usize>().unwrap() > 100 && body.is_empty(),
        "{head}"
    );
    for target in ["/", "/metrics/", "/metric", "/metrics%3f"] {
        assert!(
            get(&address, target).0.starts_with("HTTP/1.1 404 "),
            "{target}"
        );
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "get"] {
        let request = format!("{method} /metrics HTTP/1.1\r\nContent-Length: 9\r\n\r\nsome=body");
        let (head, _) = exchange(&address, request.as_bytes());
        assert!(
            head.starts_with("HTTP/1.1 405 ") && head.contains("\r\nAllow: GET, HEAD"),
            "{head}"
        );
    }
    for rubbish in [
        &b"rubbish\r\n\r\n"[..],
        b"\0\xFF\r\n",
        b"GET /metrics\r\n\r\n",
    ] {
        let (head, _) = exchange(&address, rubbish);
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    }
    // A head without an end, in length and in lines.
    let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(17 << 10));
    let many = format!("GET / HTTP/1.1\r\n{}", "A: b\r\n".repeat(200));
    for request in [long, many] {
        let (head, _) = exchange(&address, request.as_bytes());
        assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
    }
    // One that breaks off.
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(b"GET /metrics HT").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(received(stream).0.starts_with("HTTP/1.1 400 "));
}

/// Whether the server still has the connection open.
fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut stream = stream;
    matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn idle_clients_hold_nobody_up() {
    let (_server, address) = metered("memory:1M");
    let connect = || TcpStream::connect(&address).unwrap();
    let idle = connect();
    fetch(&address);
    assert!(is_open(&idle), "it was not waited for");
    // As many as there may be, one more: the first has to go.
    let more: Vec<_> = (0..16).map(|_| connect()).collect();
    fetch(&address);
    idle.set_nonblocking(false).unwrap();
    assert_eq!((&idle).read(&mut [0]).unwrap_or(0), 0);
    assert!(more.last().is_some_and(is_open));
}

#[test]
fn a_client_that_asks_too_slowly_is_told() {
    let (_server, address) = metered("memory:1M");
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHos").unwrap();
    assert!(received(stream).0.starts_with("HTTP/1.1 408 "));
}

#[test]
fn addresses_by_name_and_by_port_alone() {
    for address in ["localhost:0", ":0", "[::1]:0"] {
        let args = ["--json", "--metrics", address, "--disk", "memory:1M"];
        let mut server = Server::spawn(&args, None, None);
        let bound = server.metrics_address();
        let port = bound.rsplit(':').next().unwrap();
        let host = if address.starts_with('[') {
            "[::1]"
        } else {
            "127.0.0.1"
        };
        fetch(&format!("{host}:{port}"));
    }
    let refused = |address: &str| {
        let output = vblk(&[
            "serve",
            "vhost-user",
            "--disk",
            "memory:1M",
            "--socket",
            "/nonexistent/s",
            "--metrics",
            address,
        ]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), said.lines().count()),
            (Some(2), 1),
            "{said}"
        );
        assert!(said.contains("localhost:9477"), "{said}");
    };
    for wrong in ["9477", ":x", "127.0.0.1"] {
        refused(wrong);
    }
}

#[test]
fn numbers_agree_wherever_they_are_shown() {
    let (served, address) = metered("memory:32M,throttle=iops:1000000");
    verify::run(&Config::new(served.socket(), 3000)).unwrap();
    let stats = served.ask(&["stats"]);
    let (head, text) = get(&address, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let sum = |name: &str, op: &str| -> f64 {
        let label = format!("op=\"{op}\"");
        let lines = text
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(&label));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    };
    for op in ["read", "write", "flush", "discard", "write_zeroes"] {
        let ops = &stats["total"]["ops"][op];
        let count = ops["count"].as_f64().unwrap();
        assert!(count > 0.0, "{op}: {stats}");
        assert_eq!(sum("vblk_operations_total{", op), count, "{text}");
        assert_eq!(sum("vblk_latency_seconds_count{", op), count, "{text}");
        let bytes = ops["bytes"].as_f64().unwrap();
        assert_eq!(sum("vblk_transferred_bytes_total{", op), bytes, "{text}");
    }
    assert!(text.contains("} 33554432\n"), "{text}");
    let control = served.control();
    let top = vblk(&["top", &control, "--count", "2", "--interval", "0.01"]);
    let table = String::from_utf8(top.stdout).unwrap();
    assert!(top.status.success());
    assert!(table.contains("memory:32M  32 MiB"), "{table}");
    assert!(
        table.contains("depth 0") && table.contains("p99.99"),
        "{table}"
    );
    assert!(
        table.contains("throttle=iops:1000000: 0 waiting"),
        "{table}"
    );
}
