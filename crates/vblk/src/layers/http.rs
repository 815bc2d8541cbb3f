// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A server of HTTP/1.1 for one page: a thread per client, each for a bounded time.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::clients::{Clients, Entered};

/// How long a client may take to ask, and again to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest head of a request (RFC 9112, section 3: "it is RECOMMENDED that all HTTP senders and recipients support,
/// at a minimum, request-line lengths of 8000 octets").
const MAX_HEAD: usize = 16 << 10;
/// Most lines of a head.
const MAX_FIELDS: usize = 100;
/// Most clients at a time. One more takes the place of the one that has sent nothing for the longest time.
const MAX_CLIENTS: usize = 16;
/// How much of what a client sent behind its request is read: a connection that is closed with bytes unread is reset,
/// and the answer may be lost.
const MAX_REST: u64 = 64 << 10;

/// The page that is served.
pub(super) struct Page {
    pub(super) path: &'static str,
    pub(super) kind: &'static str,
    /// Makes the text.
    pub(super) text: Box<dyn Fn() -> Result<String, String> + Send + Sync>,
}

/// Serves a page on threads of their own until the process ends.
///
/// # Errors
/// There is no thread.
pub(super) fn start(listener: TcpListener, page: Page) -> io::Result<()> {
    let page = Arc::new(page);
    let clients = Clients::new(MAX_CLIENTS, Duration::ZERO);
    let server = thread::Builder::new().name("vblk-metrics".into());
    server.spawn(move || {
        for stream in listener.incoming() {
            if let Err(error) = stream.and_then(|stream| accept(stream, &clients, &page)) {
                log::debug!("metrics: {error}");
                // Short of descriptors it would fail again at once.
                thread::sleep(Duration::from_millis(10));
            }
        }
    })?;
    Ok(())
}

fn accept(mut stream: TcpStream, clients: &Arc<Clients>, page: &Arc<Page>) -> io::Result<()> {
    let cut = stream.try_clone()?;
    let entered = clients.enter(move || {
        // It may have gone by itself.
        let _ = cut.shutdown(Shutdown::Both);
    });
    let Some(entered) = entered else {
        // A few bytes, for which a new connection has room.
        return stream.write_all(&Answer::text("503 Service Unavailable", "busy").bytes(true));
    };
    let page = page.clone();
    let client = thread::Builder::new().name("vblk-scraped".into());
    client.spawn(move || {
        if let Err(error) = serve(stream, &entered, &page) {
            log::debug!("metrics: {error}");
        }
    })?;
    Ok(())
}

/// What is sent.
struct Answer {
    status: &'static str,
    kind: &'static str,
    allow: bool,
    body: String,
}

impl Answer {
    fn text(status: &'static str, word: &str) -> Self {
        Self {
            status,
            kind: "text/plain; charset=utf-8",
            allow: false,
            body: format!("{word}\n"),
        }
    }

    /// With a body or, for HEAD, without.
    fn bytes(&self, has_body: bool) -> Vec<u8> {
        let allow = if self.allow {
            "Allow: GET, HEAD\r\n"
        } else {
            ""
        };
        let mut bytes = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
            self.status,
            self.kind,
            self.body.len()
        )
        .into_bytes();
        if has_body {
            bytes.extend_from_slice(self.body.as_bytes());
        }
        bytes
    }
}

/// A request, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
}

/// Why a request is none.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    Syntax,
    TooLong,
    Late,
}

fn serve(mut stream: TcpStream, entered: &Entered, page: &Page) -> io::Result<()> {
    let request = read(&mut stream)?;
    let is_head = request
        .as_ref()
        .is_ok_and(|request| request.method == "HEAD");
    let Some(answer) = entered.work(|| answer(request, page)) else {
        return Err(io::Error::other("sent away for another client"));
    };
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&answer.bytes(!is_head))?;
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    io::copy(&mut stream.take(MAX_REST), &mut io::sink())?;
    Ok(())
}

fn answer(request: Result<Request, Wrong>, page: &Page) -> Answer {
    let request = match request {
        Ok(request) => request,
        Err(Wrong::Syntax) => return Answer::text("400 Bad Request", "this is no HTTP request"),
        Err(Wrong::TooLong) => {
            return Answer::text(
                "431 Request Header Fields Too Large",
                "the request is too long",
            );
        }
        Err(Wrong::Late) => return Answer::text("408 Request Timeout", "no request came"),
    };
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        let answer = Answer::text("405 Method Not Allowed", "use GET");
        return Answer {
            allow: true,
            ..answer
        };
    }
    if request.path != page.path {
        return Answer::text("404 Not Found", &format!("see {}", page.path));
    }
    match (page.text)() {
        Ok(body) => Answer {
            status: "200 OK",
            kind: page.kind,
            allow: false,
            body,
        },
        Err(error) => Answer::text("500 Internal Server Error", &error),
    }
}

/// Reads the head of a request.
fn read(stream: &mut TcpStream) -> io::Result<Result<Request, Wrong>> {
    let until = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Err(Wrong::Late));
        }
        stream.set_read_timeout(Some(left))?;
        let mut part = [0; 1024];
        let read = match stream.read(&mut part) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Err(Wrong::Late));
            }
            Err(error) => return Err(error),
        };
        head.extend(part.iter().take(read));
        match parse(&head) {
            Ok(Some(request)) => return Ok(Ok(request)),
            Err(wrong) => return Ok(Err(wrong)),
            Ok(None) if read == 0 => return Ok(Err(Wrong::Syntax)),
            Ok(None) if head.len() > MAX_HEAD => return Ok(Err(Wrong::TooLong)),
            Ok(None) => {}
        }
    }
}

/// The request; `None` while it is not complete.
fn parse(head: &[u8]) -> Result<Option<Request>, Wrong> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(head) {
        Ok(httparse::Status::Partial) => return Ok(None),
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Wrong::TooLong),
        Err(_) => return Err(Wrong::Syntax),
    }
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else {
        return Err(Wrong::Syntax);
    };
    // A proxy sends the whole URI.
    let path = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => rest
            .find('/')
            .and_then(|start| rest.get(start..))
            .unwrap_or("/"),
        _ => target,
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    Ok(Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(head: &str) -> Result<Option<(String, String)>, Wrong> {
        let request = parse(head.as_bytes())?;
        Ok(request.map(|request| (request.method, request.path)))
    }

    #[test]
    fn heads_are_parsed() {
        let is = |method: &str, path: &str| Ok(Some((method.to_owned(), path.to_owned())));
        for (head, right) in [
            ("", Ok(None)),
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n", Ok(None)),
            (
                "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
                is("GET", "/metrics"),
            ),
            (
                "HEAD /metrics?x=1&y HTTP/1.0\r\n\r\n",
                is("HEAD", "/metrics"),
            ),
            (
                "GET http://host:1/metrics?x HTTP/1.1\r\n\r\n",
                is("GET", "/metrics"),
            ),
            ("GET http://host HTTP/1.1\r\n\r\n", is("GET", "/")),
            (
                "GET /a://metrics HTTP/1.1\r\n\r\n",
                is("GET", "/a://metrics"),
            ),
            ("OPTIONS * HTTP/1.1\r\n\r\n", is("OPTIONS", "*")),
            ("\0\r\n\r\n", Err(Wrong::Syntax)),
            ("GET /metrics SPDY/1\r\n\r\n", Err(Wrong::Syntax)),
        ] {
            assert_eq!(parsed(head), right, "{head:?}");
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(101));
        assert_eq!(parsed(&many), Err(Wrong::TooLong));
    }
}
