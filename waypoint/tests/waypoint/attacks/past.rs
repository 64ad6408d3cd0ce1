//! What clients try to pass by what is said of requests: they take out what is written for the app, do not look like a
//! request, are one when nobody listens any more, or ask for HTTP in another form. And what an app must not see twice.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::http::Request;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::Full;
use lab::{Lab, Pod};

use crate::app::{One, SOON};
use crate::shop::{Shop, in_shop_of};

#[test]
fn nobody_passes_by_what_is_said_of_requests() {
    // A client that a busy machine lets wait before its first word is none that says nothing.
    let lab = Lab::builder().waypoint_env("AMBIT_DETECT_TIMEOUT", "3s");
    in_shop_of(lab, |shop| {
        let mut wrong = Vec::new();
        for (what, try_it) in WAYS {
            if let Err(why) = try_it(shop) {
                wrong.push(format!("{what}: {why:?}"));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    });
}

type Way = fn(&Shop<'_>) -> Result<()>;

const WAYS: [(&str, Way); 5] = [
    ("fields that a client names", named),
    ("HTTP in another form", upgraded),
    ("requests that look like something else", disguised),
    ("an endpoint that is the proxy itself", inward),
    ("what may not be made twice", once),
];

/// Says that, and hears until the other end ends.
fn say(shop: &Shop<'_>, at: SocketAddr, said: &str, within: Duration) -> Result<String> {
    let mut stream = shop.client.connect(at)?;
    stream.set_read_timeout(Some(within))?;
    stream.write_all(said.as_bytes())?;
    ended(&mut stream)
}

/// What comes until it ends; it must.
fn ended(stream: &mut TcpStream) -> Result<String> {
    let mut heard = Vec::new();
    match stream.read_to_end(&mut heard) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(error.into()),
        _ => Ok(String::from_utf8_lossy(&heard).into_owned()),
    }
}

/// What `connection` names is a client's own to take out, and what the proxy writes under that name is not.
fn named(shop: &Shop<'_>) -> Result<()> {
    let route = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { namespace: shop, name: named }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules:
  - filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-tenant, value: shop }] } }]
    backendRefs: [{ name: web, port: 80 }]
";
    shop.lab.apply_yaml("named", route)?;
    shop.until("the rule", |shop| {
        let got = shop.runtime.block_on(shop.get("/"));
        got.is_ok_and(|heard| heard.saw("x-tenant").as_deref() == Some("shop"))
    })?;
    let said = "GET / HTTP/1.1\r\nhost: web.shop\r\nx-mine: 1\r\nx-tenant: other\r\n\
        connection: close, x-tenant, x-request-id\r\nconnection: X-Forwarded-Proto, x-mine\r\n\r\n";
    let heard = say(shop, shop.at(80), said, SOON)?;
    for line in [
        "x-tenant: shop\n",
        "x-forwarded-proto: http\n",
        "x-request-id: ",
    ] {
        ensure!(heard.contains(line), "no {line:?} in {heard}");
    }
    for gone in ["x-mine", "x-tenant: other"] {
        ensure!(!heard.contains(gone), "{gone:?} in {heard}");
    }
    shop.lab.delete_yaml("named")
}

/// Beside a protocol that may be asked for, one that may not is not asked for either.
fn upgraded(shop: &Shop<'_>) -> Result<()> {
    for (upgrade, asked) in [
        ("h2c, websocket", Some("\nupgrade: websocket\n")),
        ("websocket\r\nupgrade: h2c", Some("\nupgrade: websocket\n")),
        ("h2c", None),
    ] {
        let said = format!(
            "GET / HTTP/1.1\r\nhost: web.shop\r\nconnection: close, upgrade, http2-settings\r\n\
            http2-settings: AAMAAABkAAQAAP__\r\nupgrade: {upgrade}\r\n\r\n"
        );
        let heard = say(shop, shop.at(80), &said, SOON)?;
        ensure!(heard.starts_with("HTTP/1.1 200"), "{upgrade:?}: {heard}");
        ensure!(!heard.contains("h2c"), "{upgrade:?}: {heard}");
        ensure!(!heard.contains("http2-settings"), "{upgrade:?}: {heard}");
        let right = asked.is_none_or(|asked| heard.contains(asked));
        ensure!(right, "{upgrade:?}: {heard}");
    }
    Ok(())
}

/// An app that says nothing, and keeps what has come of each connection.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Vec<u8>>>>);

impl Recorder {
    fn listen(&self, pod: &Pod, port: u16) -> Result<()> {
        let listener = pod.listen(port)?;
        let recorder = self.clone();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let recorder = recorder.clone();
                std::thread::spawn(move || recorder.hear(stream));
            }
        });
        Ok(())
    }

    fn hear(&self, mut stream: TcpStream) {
        let number = {
            let mut all = self.0.lock().unwrap();
            all.push(Vec::new());
            all.len() - 1
        };
        let mut part = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut part) {
            self.0.lock().unwrap()[number].extend_from_slice(&part[..n]);
        }
    }

    fn heard(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap().concat()).into_owned()
    }
}

/// At a port of which nothing is said but by a rule for its requests: what an app would take for one is one, and goes where
/// the rule says, or nowhere.
fn disguised(shop: &Shop<'_>) -> Result<()> {
    let app = Recorder::default();
    for pod in &shop.apps {
        app.listen(pod, 8650)?;
    }
    let past = shop
        .lab
        .service_for("shop/past", ("app", "web"), &[("raw", 80, 8650)])?;
    let route = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { namespace: shop, name: past }
spec:
  parentRefs: [{ group: '', kind: Service, name: past, port: 80 }]
  rules:
  - filters: [{ type: RequestRedirect, requestRedirect: { hostname: elsewhere.example, statusCode: 301 } }]
";
    shop.lab.apply_yaml("past", route)?;
    let rest = "host: past.shop\r\nconnection: close\r\n\r\n";
    shop.until("the rule", |shop| {
        let said = format!("GET /begin HTTP/1.1\r\n{rest}");
        let heard = say(shop, past.at(80), &said, Duration::from_secs(5));
        heard.is_ok_and(|heard| heard.starts_with("HTTP/1.1 301"))
    })?;
    let carried = |shop: &Shop<'_>| -> Result<f64> {
        let labels = [("destination_service_name", "past")];
        let metrics = shop.waypoint.pod().metrics()?;
        Ok(metrics.sum("istio_tcp_connections_opened_total", &labels))
    };
    let cut = |shop: &Shop<'_>| -> Result<f64> {
        let labels = [("reason", "late_request")];
        let metrics = shop.waypoint.pod().metrics()?;
        Ok(metrics.sum("ambit_tunnel_refusals_total", &labels))
    };
    // Before there was a rule, one that came late may have been.
    let through = carried(shop)? - cut(shop)?;
    let long = "x".repeat(20_000);
    for (what, said, status) in [
        (
            "lines before it",
            format!("\r\n\n\r\nGET /v HTTP/1.1\r\n{rest}"),
            "301",
        ),
        ("small letters", format!("get /v HTTP/1.1\r\n{rest}"), "301"),
        (
            "another method",
            format!("X.1!y /v HTTP/1.1\r\n{rest}"),
            "301",
        ),
        (
            "a long method",
            format!("{} /v HTTP/1.1\r\n{rest}", &long[..100]),
            "301",
        ),
        (
            "a long query",
            format!("GET /v?{long} HTTP/1.1\r\n{rest}"),
            "301",
        ),
        ("a tab", format!("GET\t/v HTTP/1.1\r\n{rest}"), "400"),
        ("no version", "GET /v\r\n".to_owned(), "400"),
    ] {
        // One that comes so late that nobody listens any more is cut off, and another one is answered.
        let last = RefCell::new(String::new());
        let answered = shop.until("an answer", |shop| {
            let heard = say(shop, past.at(80), &said, SOON).unwrap_or_default();
            let fits = heard.starts_with(&format!("HTTP/1.1 {status}"));
            *last.borrow_mut() = heard.chars().take(200).collect();
            fits
        });
        answered.with_context(|| format!("{what}: {last:?}"))?;
    }
    // Who waits until nobody listens any more, with nothing said or too little to tell, is cut off by his request.
    shop.until("no request to be carried as bytes", |shop| {
        let (carried, cut) = (carried(shop), cut(shop));
        carried.is_ok_and(|carried| cut.is_ok_and(|cut| carried - cut < through + 0.5))
    })?;
    let before = (carried(shop)?, cut(shop)?);
    let mut silent = shop.client.connect(past.at(80))?;
    let mut begun = shop.client.connect(past.at(80))?;
    begun.write_all(b"GE")?;
    shop.until("both to be carried", |shop| {
        carried(shop).is_ok_and(|connections| connections > before.0 + 1.5)
    })?;
    for (stream, begin) in [(&mut silent, "GET"), (&mut begun, "T")] {
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(format!("{begin} /late HTTP/1.1\r\n{rest}").as_bytes())?;
        let heard = ended(stream)?;
        ensure!(heard.is_empty(), "{begin}: {heard}");
    }
    let heard = app.heard();
    ensure!(!heard.contains("/late"), "{heard:?}");
    // Of one that came late in pieces, the first may have passed, but not the end of its first line.
    let is_whole = |said: &Vec<u8>| {
        let said = String::from_utf8_lossy(said);
        let mut lines = said.split_inclusive('\n');
        lines.any(|line| line.ends_with('\n') && line.contains("/v"))
    };
    let reached = app.0.lock().unwrap().iter().any(is_whole);
    ensure!(!reached, "{heard:?}");
    shop.until("both to be counted", |shop| {
        cut(shop).is_ok_and(|requests| requests > before.1 + 1.5)
    })
}

/// Whoever may write down endpoints does not reach the proxy's own admin door through it.
fn inward(shop: &Shop<'_>) -> Result<()> {
    let entry = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { namespace: shop, name: inward }
spec:
  hosts: [inward.example]
  addresses: [10.77.0.1]
  ports: [{ number: 80, name: http, protocol: HTTP, targetPort: 15000 }]
  resolution: STATIC
  endpoints: [{ address: 127.0.0.1 }]
";
    shop.lab.apply_yaml("inward", entry)?;
    let said = "GET /config_dump HTTP/1.1\r\nhost: inward.example\r\nconnection: close\r\n\r\n";
    let at = SocketAddr::from(([10, 77, 0, 1], 80));
    shop.until("a refusal", |shop| {
        let heard = say(shop, at, said, SOON);
        heard.is_ok_and(|heard| {
            heard.starts_with("HTTP/1.1 503") && heard.contains("upstream connect error")
        })
    })?;
    let log = shop.waypoint.pod().access_log();
    log.find("the refusal", |line| {
        line.field("host") == "inward.example" && line.field("detail").contains("the proxy itself")
    })?;
    shop.lab.delete_yaml("inward")
}

/// Of each connection the first request is answered; with the next it is ended, which nobody could have known.
fn fickle(mut stream: TcpStream, seen: &Mutex<Vec<String>>) -> Result<()> {
    let (mut waiting, mut count) = (Vec::new(), 0);
    loop {
        let end = loop {
            let found = waiting.windows(6).position(|part| part == b"\r\n\r\nhi");
            if let Some(at) = found {
                break at + 6;
            }
            let mut part = [0; 4096];
            match stream.read(&mut part)? {
                0 => return Ok(()),
                n => waiting.extend_from_slice(&part[..n]),
            }
        };
        let head = String::from_utf8(waiting.drain(..end).collect())?;
        let path = head.split(' ').nth(1).context("a path")?;
        seen.lock().unwrap().push(path.to_owned());
        count += 1;
        if count > 1 {
            return Ok(());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
    }
}

/// A POST that an app may have seen is made again only where its rule says so for what has happened.
fn once(shop: &Shop<'_>) -> Result<()> {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    for pod in &shop.apps {
        let (listener, seen) = (pod.listen(8660)?, seen.clone());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let seen = seen.clone();
                // How it ends is its client's to see.
                std::thread::spawn(move || fickle(stream, &seen));
            }
        });
    }
    let fickle = shop
        .lab
        .service_for("shop/fickle", ("app", "web"), &[("http", 80, 8660)])?;
    let rule = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { namespace: shop, name: fickle }
spec:
  hosts: [fickle]
  http:
  - retries: { attempts: 3, retryOn: connect-failure }
    headers: { response: { set: { x-rule: 'yes' } } }
    route: [{ destination: { host: fickle } }]
";
    shop.lab.apply_yaml("fickle", rule)?;
    let post = |path: &str| {
        shop.runtime.block_on(async {
            let mut client = One::to(&shop.client, fickle.at(80)).await?;
            let request = Request::post(path).header("host", "fickle.shop");
            client
                .ask(request.body(Full::from(Bytes::from_static(b"hi")))?)
                .await
        })
    };
    shop.until("the rule", |_| {
        post("/begin").is_ok_and(|heard| heard.headers.contains_key("x-rule"))
    })?;
    // The app's end is met once for each connection that is used again; each thread has its own.
    let mut failed = 0;
    for number in 0..500 {
        let path = format!("/{number}");
        let heard = post(&path)?;
        failed += usize::from(matches!(heard.status, 502..=504));
        let seen = seen.lock().unwrap();
        let times = seen.iter().filter(|it| **it == path).count();
        ensure!(times <= 1, "{path} was seen {times} times: {heard:?}");
        if failed > 5 {
            return Ok(());
        }
    }
    bail!("only {failed} met the app's end")
}
