//! Who plays: real servers and clients in pods, on two nodes, in and out of the mesh.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, OUTSIDE_NAMES, Pod};
use nix::unistd::{User, chown};

use super::screen::{Screen, Tone};

/// In the page web serves and in nothing else: what a listener on the wire would look for.
pub(super) const MARKER: &str = "the-price-of-tea-is-42";
/// Also in another page's address, for a wire that is not encrypted.
pub(super) const PAGE: &str = "index.html";

/// The pods.
#[derive(Debug)]
pub(super) struct Cast {
    pub(super) web: Pod,
    pub(super) cache: Pod,
    pub(super) db: Pod,
    pub(super) mobile: Pod,
    pub(super) kiosk: Pod,
    pub(super) checkout: Pod,
    pub(super) legacy: Pod,
    psql: PathBuf,
}

impl Cast {
    /// Starts every pod and its program, and lists them.
    pub(super) fn assemble(lab: &Lab, screen: &Screen) -> Result<Self> {
        let started = Instant::now();
        screen.chapter(1, "Real programs in pods on two nodes; namespace shop is in the mesh, namespace old is not");
        lab.namespace("shop").ambient()?;
        lab.namespace("old").plain()?;
        let pod = |reference: &str, node: usize| {
            let (_, name) = reference.split_once('/').unwrap_or_default();
            lab.pod(reference).node(node).service_account(name).start()
        };
        let cast = Self {
            web: pod("shop/web", 0)?,
            cache: pod("shop/cache", 0)?,
            db: pod("shop/db", 1)?,
            mobile: pod("shop/mobile", 1)?,
            kiosk: pod("shop/kiosk", 0)?,
            checkout: pod("shop/checkout", 1)?,
            legacy: pod("old/batch", 1)?,
            psql: program("psql")?,
        };
        lab.service("shop/web", &[(80, 8080)])?;
        lab.service("shop/cache", &[(6379, 6379)])?;
        lab.service("shop/db", &[(5432, 5432)])?;
        shop_window(&cast.web)?;
        redis(&cast.cache)?;
        postgres(&cast.db)?;
        outside(lab)?;
        cast.list(lab, screen);
        screen.done(&format!(
            "all are enrolled and running after {:.1} s",
            started.elapsed().as_secs_f32()
        ));
        Ok(cast)
    }

    fn list(&self, lab: &Lab, screen: &Screen) {
        let row = |tone, cells: [&str; 5]| {
            let widths = [14, 8, 12, 36, 40];
            let cells: Vec<_> = widths
                .into_iter()
                .zip(cells)
                .map(|(width, text)| (width, tone, text))
                .collect();
            screen.row(&cells);
        };
        row(
            Tone::Faint,
            ["POD", "NODE", "ADDRESS", "IDENTITY", "PROGRAM"],
        );
        let roles = [
            (&self.web, "nginx, service web:80"),
            (&self.cache, "redis-server, service cache:6379"),
            (&self.db, "postgres, service db:5432"),
            (&self.mobile, "curl"),
            (&self.kiosk, "curl, redis-cli"),
            (&self.checkout, "redis-cli, psql, curl"),
            (&self.legacy, "curl; knows nothing of a mesh"),
        ];
        for (pod, program) in roles {
            let name = format!("{}/{}", pod.namespace(), pod.name());
            let identity = if pod.namespace() == "old" {
                "none".to_owned()
            } else {
                pod.identity()
            };
            let identity = identity.replace("cluster.local", "…");
            row(
                Tone::Plain,
                [
                    &name,
                    lab.node(pod.node()).name(),
                    &pod.ip().to_string(),
                    &identity,
                    program,
                ],
            );
        }
    }

    /// Fetches web's page the way a browser would.
    pub(super) fn page(&self, client: &Pod, at: &str) -> Result<()> {
        let page = client
            .exec([
                "curl",
                "-sS",
                "--fail",
                "--max-time",
                "50",
                &format!("http://{at}/{PAGE}"),
            ])?
            .success()?;
        ensure!(
            page.contains(MARKER),
            "not the page that was expected: {page}"
        );
        Ok(())
    }

    /// Sets and reads a value of the cache.
    pub(super) fn count(&self, client: &Pod) -> Result<String> {
        let ran = client
            .command([
                "timeout",
                "50",
                "redis-cli",
                "-h",
                "cache.shop",
                "incr",
                "visits",
            ])?
            .run()?;
        let said = ran.success()?;
        // redis-cli exits with 0 when the server hung up.
        ensure!(said.trim().parse::<u64>().is_ok(), "{said}");
        Ok(said)
    }

    /// Asks the database.
    pub(super) fn order(&self, client: &Pod) -> Result<()> {
        let sql = "insert into orders(what) values ('tea'); select count(*) from orders";
        let psql = self.psql.to_str().context("a path in UTF-8")?;
        let command =
            client.command([psql, "-qtA", "-h", "db.shop", "-U", "postgres", "-c", sql])?;
        let said = command
            .env("PGCONNECT_TIMEOUT", "50")
            .env("PGSSLMODE", "disable")
            .run()?
            .success()?;
        ensure!(said.trim().parse::<u64>().is_ok(), "{said}");
        Ok(())
    }

    /// Something outside of the mesh, by a name the mesh does not know.
    pub(super) fn call_out(&self, client: &Pod) -> Result<()> {
        let url = format!("http://{}/", OUTSIDE_NAMES[0]);
        client
            .exec(["curl", "-sS", "--fail", "--max-time", "50", &url])?
            .success()?;
        Ok(())
    }
}

fn shop_window(pod: &Pod) -> Result<()> {
    let html = pod.dir().join("html");
    fs::create_dir_all(&html)?;
    let page = format!("<h1>Tea shop</h1>\n<p>{MARKER}</p>\n").repeat(8);
    fs::write(html.join(PAGE), page)?;
    nginx(pod, &format!("root {};", html.display()))
}

/// nginx on port 8080; `site`: what it is to do there. What it was asked is in `access.log` of the pod's directory.
pub(super) fn nginx(pod: &Pod, site: &str) -> Result<()> {
    let dir = pod.dir();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("  {kind}_temp_path {}/{kind};\n", dir.display()))
        .collect();
    let config = format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {dir}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n{temporary}  \
         access_log {dir}/access.log;\n  server {{\n    listen 8080;\n    listen [::]:8080;\n    {site}\n  }}\n}}\n",
        dir = dir.display()
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config)?;
    let binary = program("nginx")?;
    let process = pod.spawn(
        "nginx",
        [text(&binary)?, "-e", "stderr", "-c", text(&file)?],
    )?;
    pod.until_listening(&process, 8080)
}

fn redis(pod: &Pod) -> Result<()> {
    let binary = program("redis-server")?;
    let words = [
        "--port",
        "6379",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--bind",
        "*",
        "-::*",
        "--dir",
        text(pod.dir())?,
    ];
    let process = pod.spawn("redis", std::iter::once(text(&binary)?).chain(words))?;
    pod.until_listening(&process, 6379)
}

/// As user postgres: the server refuses to run as root.
fn postgres(pod: &Pod) -> Result<()> {
    let (initdb, server) = (program("initdb")?, program("postgres")?);
    let data = pod.dir().join("data");
    fs::create_dir_all(&data)?;
    let user = User::from_name("postgres")?.context("this machine has no user postgres")?;
    chown(&data, Some(user.uid), Some(user.gid))?;
    let data = text(&data)?;
    let init = [
        text(&initdb)?,
        "-D",
        data,
        "-A",
        "trust",
        "--no-sync",
        "-E",
        "UTF8",
        "--locale=C",
    ];
    pod.command(init)?
        .user("postgres")
        .within(Duration::from_secs(60))
        .run()?
        .success()?;
    fs::write(
        format!("{data}/pg_hba.conf"),
        "local all all trust\nhost all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n",
    )?;
    let run = [
        text(&server)?,
        "-D",
        data,
        "-k",
        data,
        "-c",
        "listen_addresses=*",
        "-c",
        "fsync=off",
    ];
    let process = pod.command(run)?.user("postgres").spawn("postgres")?;
    pod.until_listening(&process, 5432)?;
    let psql = program("psql")?;
    let create = [
        text(&psql)?,
        "-q",
        "-h",
        data,
        "-U",
        "postgres",
        "-c",
        "create table orders(id serial, what text)",
    ];
    lab::wait::until_true("postgres to take commands", Duration::from_secs(60), || {
        pod.command(create)
            .and_then(|command| command.run())
            .is_ok_and(|ran| ran.succeeded())
    })
}

/// The world outside: a web server that belongs to no mesh.
fn outside(lab: &Lab) -> Result<()> {
    let listener = lab
        .outside()
        .within(|| TcpListener::bind(SocketAddr::from(([0; 16], 80))))??;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let _ = stream.read(&mut [0; 2048]);
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: close\r\n\r\nfar away\n",
            );
        }
    });
    Ok(())
}

/// Where a program is: some distributions keep servers out of PATH, postgres by version.
fn program(name: &str) -> Result<PathBuf> {
    let mut places: Vec<PathBuf> = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        .map(PathBuf::from)
        .into();
    for versions in ["/usr/lib/postgresql", "/usr"] {
        let found = fs::read_dir(versions)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("bin"));
        places.extend(found.filter(|bin| bin.join("postgres").exists()));
    }
    // The newest version last in the alphabet, a plain one first.
    let found = places
        .iter()
        .map(|place| place.join(name))
        .find(|path| path.exists());
    found
        .with_context(|| format!("{name} is not installed; lab/install-deps.sh names the packages"))
}

fn text(path: &std::path::Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_plays_without_a_mesh_too() {
        let lab = Lab::builder().mesh(false).start().unwrap();
        let cast = Cast::assemble(&lab, &Screen::new()).unwrap();
        cast.page(&cast.mobile, &cast.web.at(8080).to_string())
            .unwrap();
        cast.call_out(&cast.checkout).unwrap();
        let pong = cast
            .kiosk
            .exec(["redis-cli", "-h", &cast.cache.ip().to_string(), "ping"]);
        assert_eq!(pong.unwrap().success().unwrap(), "PONG\n");
        let psql = cast.psql.to_str().unwrap();
        let db = cast.db.ip().to_string();
        let count = cast.checkout.exec([
            psql,
            "-h",
            &db,
            "-U",
            "postgres",
            "-Atc",
            "select count(*) from orders",
        ]);
        assert_eq!(count.unwrap().success().unwrap(), "0\n");
        lab.stop().unwrap();
    }
}
