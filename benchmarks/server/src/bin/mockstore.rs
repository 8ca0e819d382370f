// An object store in memory, for benchmarks; std only, one thread per connection, which sleeps while an answer is late.
//   mockstore PORT [DELAY_MS]
// The bucket is "bucket". Speaks what S3 (/bucket/KEY) and Google's XML interface have in common, as obstore asks it:
//   PUT if nothing has the name (If-None-Match: *, x-goog-if-generation-match: 0), GET with Range and If-Match, HEAD,
//   DELETE, lists with prefix, delimiter and pages of 1000. Signatures are not looked at.
// GET /-/config?delay_ms=30 (of every request but these)&keep_bytes=1000000 (of larger objects only the size is kept: to
//   fill memory that no process had before takes longer than to send it), /-/reset (forget the objects), /-/stats -> counters,
//   /-/log -> one line a request: ms since the first one, method, bytes, target.
use std::collections::{BTreeMap, BTreeSet};
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

const PAGE: usize = 1000;
const DATE: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

static DELAY_MS: AtomicU64 = AtomicU64::new(0);
static KEEP_BYTES: AtomicU64 = AtomicU64::new(u64::MAX);
static REQUESTS: AtomicU64 = AtomicU64::new(0);
static PUTS: AtomicU64 = AtomicU64::new(0);
static BYTES_IN: AtomicU64 = AtomicU64::new(0);
static BYTES_OUT: AtomicU64 = AtomicU64::new(0);
static TAG: AtomicU64 = AtomicU64::new(1);
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());
static BEGAN: Mutex<Option<Instant>> = Mutex::new(None);

struct Object { body: Vec<u8>, size: usize, kept: String, tag: u64 }
type Objects = Arc<RwLock<BTreeMap<String, Arc<Object>>>>;

struct Asked { method: String, target: String, headers: Vec<(String, String)> }

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
    fn query(&self, name: &str) -> Option<String> {
        let query = self.target.split_once('?')?.1;
        query.split('&').find_map(|pair| {
            let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
            (k == name).then(|| unquoted(v, true))
        })
    }
}

fn unquoted(text: &str, plus: bool) -> String {
    let b = text.as_bytes();
    let (mut out, mut i) = (Vec::with_capacity(b.len()), 0);
    while i < b.len() {
        let hex = if b[i] == b'%' { text.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(h, 16).ok()) } else { None };
        match hex {
            Some(byte) => { out.push(byte); i += 3; }
            None => { out.push(if plus && b[i] == b'+' { b' ' } else { b[i] }); i += 1; }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn escaped(text: &str) -> String { text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;") }

fn write_all(s: &mut TcpStream, head: &[u8], body: &[u8]) -> std::io::Result<()> {
    let mut parts = [IoSlice::new(head), IoSlice::new(body)];
    let mut left = &mut parts[..];
    while !left.is_empty() {
        let n = s.write_vectored(left)?;
        if n == 0 { return Err(std::io::ErrorKind::WriteZero.into()); }
        IoSlice::advance_slices(&mut left, n);
    }
    Ok(())
}

fn answer(s: &mut TcpStream, asked: &Asked, status: &str, headers: &str, body: &[u8]) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    let body = if asked.method == "HEAD" { b"" } else { body };
    BYTES_OUT.fetch_add(body.len() as u64, Relaxed);
    write_all(s, head.as_bytes(), body)
}

fn refuse(s: &mut TcpStream, asked: &Asked, status: &str, code: &str) -> std::io::Result<()> {
    answer(s, asked, status, "", format!("<?xml version='1.0'?><Error><Code>{code}</Code></Error>").as_bytes())
}

fn read(s: &mut TcpStream, buf: &mut Vec<u8>, have: &mut usize, body: &mut Vec<u8>) -> std::io::Result<Option<Asked>> {
    let end = loop {
        if let Some(k) = buf[..*have].windows(4).position(|w| w == b"\r\n\r\n") { break k + 4; }
        if *have == buf.len() { let n = buf.len() * 2; buf.resize(n, 0); }
        let n = s.read(&mut buf[*have..])?;
        if n == 0 { return Ok(None); }
        *have += n;
    };
    let head = String::from_utf8_lossy(&buf[..end]).into_owned();
    let mut lines = head.trim_end().split("\r\n");
    let mut first = lines.next().unwrap_or("").split(' ');
    let (method, target) = (first.next().unwrap_or("").to_string(), first.next().unwrap_or("").to_string());
    let headers: Vec<_> = lines.filter_map(|l| l.split_once(':')).map(|(k, v)| (k.to_string(), v.trim().to_string())).collect();
    let asked = Asked { method, target, headers };
    if asked.header("expect").is_some() { s.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?; }
    let length: usize = asked.header("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    let there = length.min(*have - end);
    body.clear();
    body.extend_from_slice(&buf[end..end + there]);
    buf.copy_within(end + there..*have, 0);
    *have -= end + there;
    if there < length { s.take((length - there) as u64).read_to_end(body)?; }
    Ok(Some(asked))
}

fn serve(mut s: TcpStream, objects: Objects) -> std::io::Result<()> {
    s.set_nodelay(true)?;
    let (mut buf, mut have, mut body) = (vec![0u8; 1 << 16], 0, vec![]);
    while let Some(asked) = read(&mut s, &mut buf, &mut have, &mut body)? {
        if asked.target.starts_with("/-/") { control(&mut s, &asked, &objects)?; continue; }
        REQUESTS.fetch_add(1, Relaxed);
        BYTES_IN.fetch_add(body.len() as u64, Relaxed);
        let began = BEGAN.lock().unwrap().get_or_insert_with(Instant::now).elapsed().as_millis();
        LOG.lock().unwrap().push(format!("{began} {} {} {}", asked.method, body.len(), asked.target));
        let delay = DELAY_MS.load(Relaxed);
        if delay > 0 { std::thread::sleep(Duration::from_millis(delay)); }
        one(&mut s, asked, &body, &objects)?;
    }
    Ok(())
}

fn control(s: &mut TcpStream, asked: &Asked, objects: &Objects) -> std::io::Result<()> {
    for (name, setting) in [("delay_ms", &DELAY_MS), ("keep_bytes", &KEEP_BYTES)] {
        if let Some(value) = asked.query(name).and_then(|v| v.parse().ok()) { setting.store(value, Relaxed); }
    }
    if asked.target.starts_with("/-/reset") {
        objects.write().unwrap().clear();
        LOG.lock().unwrap().clear();
        *BEGAN.lock().unwrap() = None;
        for each in [&REQUESTS, &PUTS, &BYTES_IN, &BYTES_OUT] { each.store(0, Relaxed); }
    }
    if asked.target.starts_with("/-/log") {
        let text = LOG.lock().unwrap().join("\n");
        return answer(s, asked, "200 OK", "Content-Type: text/plain\r\n", text.as_bytes());
    }
    let text = format!(
        "{{\"requests\":{},\"puts\":{},\"bytes_in\":{},\"bytes_out\":{}}}",
        REQUESTS.load(Relaxed), PUTS.load(Relaxed), BYTES_IN.load(Relaxed), BYTES_OUT.load(Relaxed)
    );
    answer(s, asked, "200 OK", "Content-Type: application/json\r\n", text.as_bytes())
}

fn one(s: &mut TcpStream, asked: Asked, body: &[u8], objects: &Objects) -> std::io::Result<()> {
    let path = asked.target.split('?').next().unwrap_or("");
    let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    let (bucket, key) = (bucket.to_string(), unquoted(key, false));
    if bucket != "bucket" { return refuse(s, &asked, "404 Not Found", "NoSuchBucket"); }
    match asked.method.as_str() {
        "PUT" => {
            PUTS.fetch_add(1, Relaxed);
            let kept: String = asked.headers.iter()
                .filter(|(k, _)| { let k = k.to_ascii_lowercase(); k.starts_with("x-goog-meta-") || k.starts_with("x-amz-meta-") })
                .map(|(k, v)| format!("{k}: {v}\r\n")).collect();
            let creates = asked.header("if-none-match") == Some("*") || asked.header("x-goog-if-generation-match") == Some("0");
            let tag = TAG.fetch_add(1, Relaxed);
            let mut there = objects.write().unwrap();
            if creates && there.contains_key(&key) {
                drop(there);
                return refuse(s, &asked, "412 Precondition Failed", "PreconditionFailed");
            }
            let size = body.len();
            let body = if size as u64 > KEEP_BYTES.load(Relaxed) { vec![] } else { body.to_vec() };
            there.insert(key, Arc::new(Object { body, size, kept, tag }));
            drop(there);
            answer(s, &asked, "200 OK", &format!("ETag: \"{tag:x}\"\r\nx-goog-generation: {tag}\r\n"), b"")
        }
        "GET" | "HEAD" if key.is_empty() => list(s, &asked, objects),
        "GET" | "HEAD" => {
            let Some(found) = objects.read().unwrap().get(&key).cloned() else { return refuse(s, &asked, "404 Not Found", "NoSuchKey"); };
            let tag = format!("\"{:x}\"", found.tag);
            if asked.header("if-match").is_some_and(|wanted| wanted != tag) {
                return refuse(s, &asked, "412 Precondition Failed", "PreconditionFailed");
            }
            if found.body.len() < found.size { return refuse(s, &asked, "500 Internal Server Error", "NotKept"); }
            let head = format!("ETag: {tag}\r\nLast-Modified: {DATE}\r\nx-goog-generation: {}\r\n{}", found.tag, found.kept);
            let Some(range) = asked.header("range").and_then(|r| r.strip_prefix("bytes=")).and_then(|r| r.split_once('-')) else {
                return answer(s, &asked, "200 OK", &head, &found.body);
            };
            let size = found.body.len();
            let start = range.0.parse().unwrap_or_else(|_| size - range.1.parse().unwrap_or(0).min(size));
            let end = if range.0.is_empty() { size } else { range.1.parse::<usize>().map_or(size, |last| size.min(last + 1)) };
            if start >= size { return refuse(s, &asked, "416 Range Not Satisfiable", "InvalidRange"); }
            let head = format!("{head}Content-Range: bytes {start}-{}/{size}\r\n", end - 1);
            answer(s, &asked, "206 Partial Content", &head, &found.body[start..end])
        }
        "DELETE" => match objects.write().unwrap().remove(&key) {
            Some(_) => answer(s, &asked, "204 No Content", "", b""),
            None => refuse(s, &asked, "404 Not Found", "NoSuchKey"),
        },
        _ => refuse(s, &asked, "501 Not Implemented", "NotImplemented"),
    }
}

fn list(s: &mut TcpStream, asked: &Asked, objects: &Objects) -> std::io::Result<()> {
    let (prefix, parted) = (asked.query("prefix").unwrap_or_default(), asked.query("delimiter").unwrap_or_default());
    let after = asked.query("continuation-token").or_else(|| asked.query("start-after")).unwrap_or_default();
    let (mut text, mut folders, mut count, mut more, mut last) = (String::new(), BTreeSet::new(), 0, None, String::new());
    for (key, found) in objects.read().unwrap().range(prefix.clone()..).take_while(|(k, _)| k.starts_with(&prefix)) {
        if *key <= after { continue; }
        if !parted.is_empty() {
            if let Some((folder, _)) = key[prefix.len()..].split_once(&parted) { folders.insert(format!("{prefix}{folder}{parted}")); continue; }
        }
        if count == PAGE { more = Some(last.clone()); break; }
        count += 1;
        last = key.clone();
        text += &format!(
            "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>{}</Size><ETag>\"{:x}\"</ETag></Contents>",
            escaped(key), found.size, found.tag
        );
    }
    for folder in folders { text += &format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escaped(&folder)); }
    text += &format!("<IsTruncated>{}</IsTruncated>", more.is_some());
    if let Some(token) = more { text += &format!("<NextContinuationToken>{}</NextContinuationToken>", escaped(&token)); }
    answer(s, asked, "200 OK", "", format!("<?xml version='1.0'?><ListBucketResult>{text}</ListBucketResult>").as_bytes())
}

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let port: u16 = a.get(1).and_then(|x| x.parse().ok()).unwrap_or(8098);
    DELAY_MS.store(a.get(2).and_then(|x| x.parse().ok()).unwrap_or(0), Relaxed);
    let objects: Objects = Arc::default();
    let l = TcpListener::bind(("127.0.0.1", port)).expect("bind");
    println!("{}", l.local_addr().unwrap().port());
    for s in l.incoming().flatten() {
        let objects = objects.clone();
        std::thread::Builder::new().stack_size(1 << 18).spawn(move || { let _ = serve(s, objects); }).ok();
    }
}
