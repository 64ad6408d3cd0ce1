//! 1,000 connections of many kinds, and ztunnel replaced 20 times under them: not one is cut, not one byte is another.
//!
//! It takes some minutes and two busy cores, so it runs when asked:
//! `cargo test -p lab --test handover -- --ignored --nocapture crowd`

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Pod, Process, wait};
use nix::{
    sys::signal::Signal,
    unistd::{User, chown},
};

use crate::{
    support::{
        self, SOON, Server, in_lab, round_trip,
        users::{Users, bulk},
    },
    ways::own,
};

const UPGRADES: usize = 20;
/// On each of four ways: through a tunnel, within the node, in plain text, out of the mesh.
const CHATS: usize = 175;
const STEADY: usize = 10;
const FAST: usize = 2;
/// Through tunnels.
const REDIS: usize = 202;
const PSQL: usize = 30;
const CURL: usize = 20;

#[test]
#[allow(clippy::print_stdout)] // it tells how far it is
#[ignore = "minutes, and two busy cores; the command is above"]
fn a_thousand_connections_live_through_twenty_upgrades() {
    assert_eq!(4 * (CHATS + STEADY + FAST) + REDIS + PSQL + CURL, 1000);
    in_lab(own(), |lab| {
        let crowd = Crowd::gather(lab)?;
        let (mut users, begun) = (Users::new(), Instant::now());
        crowd.echo_users(&mut users)?;
        for n in 0..REDIS {
            let stream = crowd.far.connect(crowd.cache.at(6379))?;
            users.add(format!("redis {n}"), stream, move |stream, stop, turns| {
                count(stream, n, stop, turns)
            });
        }
        let (downloads, queries) = (crowd.downloads()?, crowd.queries()?);
        println!(
            "1000 connections after {:.1} s",
            begun.elapsed().as_secs_f32()
        );
        users.go_on()?;
        let logs = support::logs_from_now(lab)?;
        for n in 0..UPGRADES {
            let at = Instant::now();
            let old = lab.surge_ztunnel(n % 2)?;
            let asked = Instant::now();
            old.signal(Signal::SIGTERM)?;
            old.wait(Duration::from_secs(60))
                .context("it still has connections")?;
            let (all, handing) = (at.elapsed().as_secs_f32(), asked.elapsed().as_secs_f32());
            users.go_on().with_context(|| format!("upgrade {n}"))?;
            println!(
                "upgrade {n} of node {}: {all:.1} s, {handing:.1} s from SIGTERM to the end",
                n % 2
            );
        }
        for log in &logs {
            let ended: Vec<_> = log
                .records()
                .into_iter()
                .filter(|record| !record.error().is_empty())
                .collect();
            ensure!(ended.is_empty(), "{ended:#?}");
        }
        crowd.stop()?;
        let bytes: u64 = users.done()?.iter().sum();
        for process in downloads.iter().chain(&queries) {
            let status = process.wait(SOON)?;
            ensure!(status.success(), "{status}: {}", process.tail());
        }
        println!(
            "{bytes} bytes sent by clients and back; {:.0} s",
            begun.elapsed().as_secs_f32()
        );
        Ok(())
    });
}

/// Pods and their programs.
struct Crowd {
    _servers: Vec<Server>,
    ended: Arc<AtomicBool>,
    ways: [(Pod, Pod); 4],
    far: Pod,
    web: Pod,
    cache: Pod,
    db: Pod,
}

impl Crowd {
    fn gather(lab: &Lab) -> Result<Self> {
        lab.namespace("shop").ambient()?;
        lab.namespace("out").plain()?;
        let pod = |name: &str, node| lab.pod(name).node(node).start();
        let (web, cache, db) = (
            pod("shop/web", 0)?,
            pod("shop/cache", 0)?,
            pod("shop/db", 0)?,
        );
        let (near, far) = (pod("shop/near", 0)?, pod("shop/far", 1)?);
        let outsider = pod("out/side", 1)?;
        redis(&cache)?;
        postgres(&db)?;
        let ended = Arc::new(AtomicBool::new(false));
        let flag = ended.clone();
        let servers = vec![
            Server::echo(&web, 8080)?,
            Server::echo(&outsider, 8080)?,
            Server::start(&web, 80, move |stream| drop(download(stream, &flag)))?,
        ];
        let ways = [
            (far.clone(), web.clone()),
            (near.clone(), web.clone()),
            (outsider.clone(), web.clone()),
            (near, outsider),
        ];
        Ok(Self {
            _servers: servers,
            ended,
            ways,
            far,
            web,
            cache,
            db,
        })
    }

    fn echo_users(&self, users: &mut Users) -> Result<()> {
        for (client, server) in &self.ways {
            let what =
                |kind: &str, n| format!("{kind} {n}, {} to {}", client.name(), server.name());
            let to = server.at(8080);
            for n in 0..CHATS {
                users.add(
                    what("chat", n),
                    client.connect(to)?,
                    |stream, stop, turns| steady(stream, 64, Duration::from_secs(1), stop, turns),
                );
            }
            for n in 0..STEADY {
                users.add(
                    what("steady", n),
                    client.connect(to)?,
                    |stream, stop, turns| {
                        steady(stream, 256 << 10, Duration::from_secs(1), stop, turns)
                    },
                );
            }
            for n in 0..FAST {
                users.add(what("bulk", n), client.connect(to)?, bulk);
            }
        }
        Ok(())
    }

    /// Answers that come as long as the test lasts.
    fn downloads(&self) -> Result<Vec<Process>> {
        let url = format!("http://{}/", self.web.at(80));
        let one = |n: usize| {
            self.far.spawn(
                &format!("curl-{n}"),
                ["curl", "-sSf", "-o", "/dev/null", &url],
            )
        };
        (0..CURL).map(one).collect()
    }

    /// Answers of a database that come as long as there is no row in `stop`.
    fn queries(&self) -> Result<Vec<Process>> {
        let (psql, host) = (text(program("psql")?)?, self.db.ip().to_string());
        let sql = "do $$ begin while not exists (select from stop) loop raise notice 'on'; perform pg_sleep(0.2); end loop; end $$";
        let one = |n: usize| {
            let words = [
                psql.as_str(),
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                &host,
                "-U",
                "postgres",
                "-c",
                sql,
            ];
            self.far
                .command(words)?
                .env("PGSSLMODE", "disable")
                .spawn(&format!("psql-{n}"))
        };
        (0..PSQL).map(one).collect()
    }

    fn stop(&self) -> Result<()> {
        self.ended.store(true, SeqCst);
        ask(&self.db, "insert into stop values (1)")
    }
}

/// `size` bytes there and back, and a pause.
fn steady(
    mut stream: TcpStream,
    size: usize,
    pause: Duration,
    stop: &AtomicBool,
    turns: &AtomicUsize,
) -> Result<u64> {
    stream.set_read_timeout(Some(SOON))?;
    let mut sent: u64 = 0;
    while !stop.load(SeqCst) {
        let text: String = (0..size)
            .map(|n| char::from(b'a' + ((sent as usize + n * 7) % 26) as u8))
            .collect();
        let mut writer = stream.try_clone()?;
        thread::scope(|scope| {
            // What comes back is read while more is written: it may be more than all buffers together hold.
            let sending =
                (size > 1 << 10).then(|| scope.spawn(|| writer.write_all(text.as_bytes())));
            match sending {
                None => round_trip(&mut stream, &text),
                Some(sending) => {
                    let mut back = vec![0; size];
                    stream
                        .read_exact(&mut back)
                        .with_context(|| format!("after {sent}"))?;
                    sending.join().unwrap()?;
                    ensure!(back == text.as_bytes(), "other bytes after {sent}");
                    Ok(())
                }
            }
        })?;
        sent += size as u64;
        turns.fetch_add(1, SeqCst);
        thread::park_timeout(pause);
    }
    stream.shutdown(Shutdown::Write)?;
    ensure!(stream.read(&mut [0])? == 0, "a surplus");
    Ok(sent)
}

/// Counts in redis, on one connection.
fn count(stream: TcpStream, n: usize, stop: &AtomicBool, turns: &AtomicUsize) -> Result<u64> {
    stream.set_read_timeout(Some(SOON))?;
    let (mut counted, mut answers) = (0, BufReader::new(stream.try_clone()?));
    while !stop.load(SeqCst) {
        (&stream).write_all(format!("INCR counter-{n}\r\n").as_bytes())?;
        let mut line = String::new();
        answers.read_line(&mut line)?;
        counted += 1;
        ensure!(
            line == format!(":{counted}\r\n"),
            "redis says {line:?} for {counted}"
        );
        turns.fetch_add(1, SeqCst);
        thread::park_timeout(Duration::from_secs(1));
    }
    Ok(counted)
}

/// One long answer in pieces.
fn download(mut stream: &TcpStream, ended: &AtomicBool) -> std::io::Result<()> {
    let _ = stream.read(&mut [0; 2048])?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
    while !ended.load(SeqCst) {
        stream.write_all(b"9\r\nand more\n\r\n")?;
        thread::park_timeout(Duration::from_millis(200));
    }
    stream.write_all(b"0\r\n\r\n")?;
    stream.shutdown(Shutdown::Write)
}

fn redis(pod: &Pod) -> Result<()> {
    let (server, dir) = (text(program("redis-server")?)?, text(pod.dir().to_owned())?);
    let words = [
        "--port",
        "6379",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--bind",
        "*",
        "--dir",
        &dir,
    ];
    let process = pod.spawn("redis", [server.as_str()].into_iter().chain(words))?;
    pod.until_listening(&process, 6379)
}

/// As user postgres: the server refuses to run as root.
fn postgres(pod: &Pod) -> Result<()> {
    let data = pod.dir().join("data");
    fs::create_dir_all(&data)?;
    let user = User::from_name("postgres")?.context("this machine has no user postgres")?;
    chown(&data, Some(user.uid), Some(user.gid))?;
    let (at, initdb, server) = (
        text(data)?,
        text(program("initdb")?)?,
        text(program("postgres")?)?,
    );
    let init = [
        &initdb,
        "-D",
        &at,
        "-A",
        "trust",
        "--no-sync",
        "-E",
        "UTF8",
        "--locale=C",
    ];
    let init = pod.command(init)?.user("postgres");
    init.within(Duration::from_secs(60)).run()?.success()?;
    fs::write(
        format!("{at}/pg_hba.conf"),
        "local all all trust\nhost all all 0.0.0.0/0 trust\n",
    )?;
    let run = [
        &server,
        "-D",
        &at,
        "-k",
        &at,
        "-c",
        "listen_addresses=*",
        "-c",
        "fsync=off",
    ];
    let process = pod.command(run)?.user("postgres").spawn("postgres")?;
    pod.until_listening(&process, 5432)?;
    wait::until_true("postgres to take commands", SOON, || {
        ask(pod, "create table stop(n int)").is_ok()
    })
}

fn ask(db: &Pod, sql: &str) -> Result<()> {
    let (psql, at) = (text(program("psql")?)?, text(db.dir().join("data"))?);
    let words = [psql.as_str(), "-q", "-h", &at, "-U", "postgres", "-c", sql];
    db.command(words)?.run()?.success().map(drop)
}

/// Some distributions keep servers out of PATH, postgres by version.
fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let postgres = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let postgres = postgres.filter_map(|version| Some(version.ok()?.path().join("bin")));
    let places = path
        .into_iter()
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .chain(postgres);
    let mut found = places
        .map(|place| place.join(name))
        .filter(|file| file.is_file());
    found
        .next()
        .with_context(|| format!("no {name} here: lab/install-deps.sh"))
}

fn text(path: PathBuf) -> Result<String> {
    path.into_os_string()
        .into_string()
        .ok()
        .context("a path in UTF-8")
}
