//! Machines that are no pods: they join by a token, talk both ways under policy, come back as who they were, and cannot be
//! somebody else.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Lab, Machine, wait};
use serde_json::Value;
use support::{Pair, SOON, Server, echo, in_lab, refused, round_trip, talk, talk_soon};

/// What an operator writes of a machine that no WorkloadGroup stands for.
fn entry(machine: &Machine) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: db\n  namespace: shop\n  \
         annotations: {{ambient.istio.io/redirection: enabled}}\nspec:\n  address: {}\n  serviceAccount: db\n  labels: {{app: db}}\n",
        machine.ip()
    )
}

/// An AuthorizationPolicy of namespace shop for workloads with a label `app`.
fn policy(name: &str, app: &str, action: &str, account: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         selector: {{matchLabels: {{app: {app}}}}}\n  action: {action}\n  rules:\n  - from: [{{source: {{principals: [cluster.local/ns/shop/sa/{account}]}}}}]\n"
    )
}

fn token(lab: &Lab, machine: &Machine, more: &[&str]) -> Result<String> {
    let addresses = machine.addresses();
    let words = ["token", "--namespace", "shop", "--service-account", "db"];
    let rest = ["--name", "db", "--address", &addresses];
    lab.vm(&[words.as_slice(), &rest, more].concat())
}

/// A machine `shop/db` that has joined, with an echo server on port 8080.
fn joined(lab: &Lab) -> Result<(Machine, Server)> {
    let machine = lab.machine("shop/db", "db")?;
    lab.apply_yaml("db", &entry(&machine))?;
    machine.give_token(&token(lab, &machine, &[])?)?;
    machine.proxy().start()?;
    let server = Server::over(machine.listen(8080)?, echo);
    Ok((machine, server))
}

fn says(machine: &Machine, to: SocketAddr, text: &str) -> Result<TcpStream> {
    let mut stream = machine.connect(to)?;
    round_trip(&mut stream, text)?;
    Ok(stream)
}

fn says_soon(machine: &Machine, to: SocketAddr) -> Result<()> {
    wait::until(&format!("the machine to reach {to}"), SOON, || {
        Ok(match says(machine, to, "again") {
            Ok(_) => wait::Probe::Ready(()),
            Err(error) => wait::Probe::NotYet(format!("{error:#}")),
        })
    })
}

fn control_plane_says(lab: &Lab, text: &str) -> Result<()> {
    let path = lab.control_plane()?.log_path().to_owned();
    wait::until_true(&format!("istiod-lite to say {text:?}"), SOON, || {
        fs::read_to_string(&path).is_ok_and(|log| log.contains(text))
    })
}

fn its_log_says(machine: &Machine, text: &str) -> Result<()> {
    let path = machine.proxy().log_path().to_owned();
    wait::until_true(&format!("the machine to say {text:?}"), SOON, || {
        fs::read_to_string(&path).is_ok_and(|log| log.contains(text))
    })
}

#[test]
fn a_machine_joins_by_a_token_and_talks_both_ways_under_policy() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let web = lab.service("shop/web", &[(80, 8080)])?;
        let (machine, server) = joined(lab)?;
        let db = lab.service("shop/db", &[(81, 8080)])?;

        // To it, by its address and by its service, as who really calls.
        talk_soon(&pair.client, machine.at(8080))?;
        talk_soon(&pair.client, db.at(81))?;
        let record = machine.access_log().find("what arrived", |it| {
            it.inbound() && it.field("src.workload") == "client" && it.error().is_empty()
        })?;
        ensure!(
            record.field("src.identity") == pair.client.identity(),
            "{record:?}"
        );
        ensure!(
            server
                .peers()
                .iter()
                .any(|peer| peer.ip() == pair.client.ip()),
            "the machine's application sees its client"
        );
        // And from it.
        let there = lab.access_log(0)?.from_now();
        says_soon(&machine, web.at(80))?;
        drop(says(&machine, pair.at(), "from the machine")?);
        let record = there.find("what the machine said", |it| {
            it.inbound() && it.field("src.workload") == "db"
        })?;
        ensure!(
            record.field("src.identity") == machine.identity(),
            "{record:?}"
        );
        let asked = machine.exec(["getent", "ahostsv4", "web.shop.svc.cluster.local"])?;
        ensure!(
            asked.success()?.contains(&web.at(80).ip().to_string()),
            "names of the mesh are answered on the machine"
        );

        // By identity: allowed is one client, denied is the machine.
        let friend = lab
            .pod("shop/friend")
            .node(0)
            .service_account("friend")
            .start()?;
        talk_soon(&friend, machine.at(8080))?;
        lab.apply_yaml("allow", &policy("clients", "db", "ALLOW", "client"))?;
        wait::until_true("the stranger is refused", SOON, || {
            refused(&friend, machine.at(8080)).is_ok()
        })?;
        drop(talk(&pair.client, machine.at(8080), "still welcome")?);
        lab.apply_yaml("deny", &policy("no-machines", "web", "DENY", "db"))?;
        wait::until_true("the machine is refused", SOON, || {
            says(&machine, pair.at(), "anyone?").is_err()
        })?;
        drop(talk(&pair.client, pair.at(), "not the client")?);
        Ok(())
    });
}

#[test]
fn without_its_proxy_a_machine_is_closed_and_after_a_reboot_it_is_who_it_was() {
    in_lab(Lab::builder().nodes(1), |lab| {
        let pair = Pair::between(lab, ("client", 0), ("web", 0))?;
        let (machine, _server) = joined(lab)?;
        talk_soon(&pair.client, machine.at(8080))?;
        let ssh = Server::over(machine.listen(22)?, echo);

        machine.proxy().kill()?;
        refused(&pair.client, machine.at(8080))?;
        ensure!(
            says(&machine, pair.at(), "out?").is_err(),
            "it fails closed"
        );
        let outside = |port| {
            let at = machine.at(port);
            let connect = || TcpStream::connect_timeout(&at, Duration::from_secs(5));
            let mut stream = lab.outside().within(connect)??;
            stream.set_read_timeout(Some(SOON))?;
            round_trip(&mut stream, "hello")
        };
        ensure!(outside(8080).is_err(), "also in the clear");
        outside(22)?;
        drop(ssh);

        // The token was used; nothing is needed but what the machine kept.
        machine.give_token("gone")?;
        machine.proxy().start()?;
        talk_soon(&pair.client, machine.at(8080))?;
        says_soon(&machine, pair.at())?;

        machine.proxy().terminate(SOON)?;
        machine.capture("down")?;
        machine.capture("down")?;
        outside(8080)?;
        Ok(())
    });
}

#[test]
fn a_token_is_good_once_and_whoever_comes_second_is_told_of() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("shop").ambient()?;
        let machine = lab.machine("shop/db", "db")?;
        lab.apply_yaml("db", &entry(&machine))?;
        // Found by a thief, who is on another machine: with an address in it, it is of no use to him.
        let bound = token(lab, &machine, &[])?;
        let thief = lab.machine("shop/db", "db")?;
        thief.give_token(&bound)?;
        thief.proxy().launch()?;
        control_plane_says(lab, "reason=\"address\"")?;
        thief.proxy().kill()?;
        machine.give_token(&bound)?;
        machine.proxy().start()?;

        // Without one, who comes first has it.
        let words = ["token", "--namespace", "shop", "--service-account", "db"];
        let free = lab.vm(&[&words[..], &["--name", "two"]].concat())?;
        let second = lab
            .machine("shop/two", "db")?
            .with_env(&[("ISTIO_META_DNS_CAPTURE", "true")]);
        second.give_token(&free)?;
        second.proxy().launch()?;
        its_log_says(&second, "this machine is a member of the mesh")?;
        let late = thief.calling_itself("shop/two/db", &[]);
        late.give_token(&free)?;
        late.proxy().launch()?;
        control_plane_says(lab, "reason=\"token_used\"")?;
        its_log_says(&late, "the join token was used before with another key")?;
        late.proxy().kill()?;

        // Nor does it help to ask a control plane that has been restarted, or with a token of yesterday.
        lab.control_plane()?.restart()?;
        late.proxy().launch()?;
        control_plane_says(lab, "ambit")?;
        let refusals = |lab: &Lab| {
            let path = lab.control_plane()?.log_path().to_owned();
            let log = fs::read_to_string(path)?;
            Ok::<_, anyhow::Error>(log.matches("reason=\"token_used\"").count())
        };
        wait::until_true("it is refused again", SOON, || {
            refusals(lab).is_ok_and(|count| count >= 2)
        })?;
        let books = lab.vm(&["list"])?;
        ensure!(books.lines().count() == 2, "{books}");
        Ok(())
    });
}

#[test]
fn a_machine_cannot_be_another_and_what_is_stolen_from_its_disk_is_of_no_use_elsewhere() {
    in_lab(Lab::builder().nodes(1), |lab| {
        let pair = Pair::between(lab, ("client", 0), ("web", 0))?;
        let (machine, _server) = joined(lab)?;
        // Its own disk, on another machine.
        let thief = lab.machine("shop/db", "db")?;
        thief.steal_from(&machine)?;
        thief.proxy().launch()?;
        control_plane_says(lab, "reason=\"address\"")?;
        ensure!(!thief.proxy().is_ready(), "it is not served");
        thief.proxy().kill()?;
        // Its own token for another name, and for another account.
        let liar = thief.calling_itself("shop/web-0/db", &[]);
        fs::remove_dir_all(liar.dir().join("membership"))?;
        let addresses = liar.addresses();
        let words = ["token", "--namespace", "shop", "--service-account", "db"];
        let own = [&words[..], &["--name", "liar", "--address", &addresses]].concat();
        liar.give_token(&lab.vm(&own)?)?;
        liar.proxy().launch()?;
        control_plane_says(lab, "says that its name is")?;
        ensure!(!liar.proxy().is_ready(), "it is not served");
        liar.proxy().kill()?;
        let liar = liar.calling_itself("shop/liar/web", &[]);
        fs::remove_dir_all(liar.dir().join("membership"))?;
        liar.give_token(&lab.vm(&own)?)?;
        liar.proxy().launch()?;
        control_plane_says(lab, "says that its SERVICE_ACCOUNT is")?;
        ensure!(!liar.proxy().is_ready(), "it is not served");
        liar.proxy().kill()?;
        // Its own name, and another's address.
        let env = [("INSTANCE_IP", &*pair.server.ip().to_string())];
        let liar = liar.calling_itself("shop/liar/db", &env);
        fs::remove_dir_all(liar.dir().join("membership"))?;
        liar.give_token(&lab.vm(&own)?)?;
        liar.proxy().launch()?;
        control_plane_says(lab, "reason=\"lies\"")?;
        ensure!(!liar.proxy().is_ready(), "it is not served");
        liar.proxy().kill()?;
        // Who was taken out is out.
        lab.vm(&["remove", "shop/db"])?;
        // Also who is connected, before it comes again.
        control_plane_says(lab, "reason=\"unknown\"")?;
        machine.proxy().terminate(SOON)?;
        machine.proxy().launch()?;
        its_log_says(&machine, "no such machine has joined, or it was taken out")?;
        ensure!(says(&machine, pair.at(), "anyone?").is_err(), "it is out");
        Ok(())
    });
}

/// A group whose machines are asked on port 8081 how they do.
const GROUP: &str = "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {name: db, namespace: shop}\nspec:\n  \
    metadata: {labels: {app: db}}\n  template: {serviceAccount: db}\n  \
    probe: {periodSeconds: 1, timeoutSeconds: 30, failureThreshold: 1, httpGet: {port: 8081, path: /well}}\n";

/// Who has that label is called by nobody of its namespace.
const GOLD: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: gold, namespace: shop}\nspec:\n  \
    selector: {matchLabels: {tier: gold}}\n  action: DENY\n  rules: [{from: [{source: {namespaces: [shop]}}]}]\n";

fn known_everywhere(lab: &Lab, name: &str, known: bool) -> Result<()> {
    lab.until_all_dumps(&format!("{name} as known: {known}"), |dump| {
        let workloads = dump["workloads"].as_array().into_iter().flatten();
        workloads.into_iter().any(|it| it["name"] == name) == known
    })
}

#[test]
fn a_machine_of_a_group_comes_and_goes_and_is_spared_while_it_is_not_well() {
    let builder = Lab::builder()
        .nodes(1)
        .istiod_env("RUST_LOG", "info,istiod_lite::machine=debug")
        .istiod_env("AMBIT_MACHINE_GRACE", "3s");
    in_lab(builder, |lab| {
        lab.namespace("shop").ambient()?;
        let client = lab.pod("shop/client").service_account("client").start()?;
        let db = lab.service("shop/db", &[(81, 8080)])?;
        lab.apply_yaml("group", GROUP)?;
        let machine = lab.machine("shop/db-1", "db")?;
        let _echo = Server::over(machine.listen(8080)?, echo);
        let well = Arc::new(AtomicBool::new(true));
        let says = well.clone();
        let _health = Server::over(machine.listen(8081)?, move |mut stream| {
            let _ = stream.read(&mut [0; 512]);
            let status = if says.load(Relaxed) {
                "200 OK"
            } else {
                "503 No"
            };
            let _ = stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes());
            let _ = stream.shutdown(Shutdown::Both);
        });
        let addresses = machine.addresses();
        let words = ["token", "--namespace", "shop", "--service-account", "db"];
        let rest = ["--group", "db", "--name", "db-1", "--address", &addresses];
        let token = lab.vm(&[words.as_slice(), &rest].concat())?;
        machine.give_token(&token)?;
        machine.proxy().start()?;
        talk_soon(&client, db.at(81))?;

        let open = talk(&client, db.at(81), "before")?;
        well.store(false, Relaxed);
        wait::until_true("the machine is spared", SOON, || {
            refused(&client, db.at(81)).is_ok()
        })?;
        let mut open = open;
        round_trip(&mut open, "what is open goes on")?;
        drop(open);
        // As Istio's agents say it, too.
        let words = "a machine says on its discovery stream how it does";
        control_plane_says(lab, words)?;
        let path = lab.control_plane()?.log_path().to_owned();
        wait::until_true("that it is not well is said there", SOON, || {
            let log = fs::read_to_string(&path).unwrap_or_default();
            let mut said = log.lines().filter(|line| line.contains(words));
            said.next_back()
                .is_some_and(|line| line.contains("unhealthy=\"port 8081/well: status 503\""))
        })?;
        well.store(true, Relaxed);
        talk_soon(&client, db.at(81))?;

        // Its group is edited while it is there: so is its entry, and with that who selects it.
        lab.apply_yaml("gold", GOLD)?;
        talk_soon(&client, db.at(81))?;
        let gold = GROUP.replace("labels: {app: db}", "labels: {app: db, tier: gold}");
        lab.apply_yaml("group", &gold)?;
        wait::until_true("its new label counts", SOON, || {
            refused(&client, db.at(81)).is_ok()
        })?;
        lab.apply_yaml("group", GROUP)?;
        talk_soon(&client, db.at(81))?;

        machine.proxy().terminate(SOON)?;
        known_everywhere(lab, "db-1", false)?;
        machine.proxy().start()?;
        talk_soon(&client, db.at(81))?;
        // A control plane that starts anew keeps the entry of who comes back.
        lab.control_plane()?.restart()?;
        talk_soon(&client, db.at(81))?;
        control_plane_says(lab, "a machine is connected")?;
        Ok(())
    });
}

#[test]
fn a_machine_gets_no_entry_at_the_address_of_another_nor_of_a_group_for_others() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("shop").ambient()?;
        let victim = lab.pod("shop/web").service_account("web").start()?;
        lab.apply_yaml("group", GROUP)?;
        let machine = lab.machine("shop/db-1", "db")?;
        // A token that an operator was talked into, or mistyped.
        let victims = victim.ip().to_string();
        let words = ["token", "--namespace", "shop", "--service-account", "db"];
        let rest = ["--group", "db", "--name", "db-1", "--translated"];
        let theirs = [words.as_slice(), &rest, &["--address", &victims]].concat();
        machine.give_token(&lab.vm(&theirs)?)?;
        machine.proxy().launch()?;
        control_plane_says(lab, "a machine gets no WorkloadEntry")?;
        control_plane_says(lab, &format!("its address {victims} is that of"))?;
        machine.proxy().kill()?;
        let other = machine.calling_itself("shop/db-2/web", &[]);
        fs::remove_dir_all(other.dir().join("membership"))?;
        let addresses = other.addresses();
        let words = ["token", "--namespace", "shop", "--service-account", "web"];
        let rest = ["--group", "db", "--name", "db-2", "--address", &addresses];
        other.give_token(&lab.vm(&[words.as_slice(), &rest].concat())?)?;
        other.proxy().launch()?;
        control_plane_says(
            lab,
            "is for service account \"db\", and the machine's is \"web\"",
        )?;
        Ok(())
    });
}

#[test]
fn with_a_service_account_token_a_machine_has_its_own_identity_and_no_other() {
    in_lab(Lab::builder().nodes(1), |lab| {
        let pair = Pair::between(lab, ("client", 0), ("web", 0))?;
        let machine = lab.machine("shop/db", "db")?;
        lab.apply_yaml("db", &entry(&machine))?;
        let file = machine.dir().join("token");
        fs::write(&file, lab.account_token("shop", "db")?.trim())?;
        let file = file.display().to_string();
        let env = [("AMBIT_JOIN_TOKEN", ""), ("AUTH_TOKEN", &*file)];
        let machine = machine.with_env(&env);
        machine.proxy().start()?;
        let _server = Server::over(machine.listen(8080)?, echo);
        talk_soon(&pair.client, machine.at(8080))?;
        let there = lab.access_log(0)?.from_now();
        says_soon(&machine, pair.at())?;
        let record = there.find("what the machine said", |it| {
            it.inbound() && it.field("src.workload") == "db" && it.error().is_empty()
        })?;
        ensure!(
            record.field("src.identity") == machine.identity(),
            "{record:?}"
        );
        machine.proxy().terminate(SOON)?;
        // The token of one account, and the workload of another.
        let liar = machine.calling_itself("shop/web/web", &env);
        liar.proxy().launch()?;
        its_log_says(&liar, "authorization failed: no identities")?;
        ensure!(!liar.proxy().is_ready(), "it is not served");
        Ok(())
    });
}

/// What kubelet would ask of the pod that brings its own proxy: one of its ports listens, the other does not.
const PROBES: &str = r#"{"/app-health/app/readyz": {"tcpSocket": {"port": 8080}}, "/app-health/app/livez": {"tcpSocket": {"port": 7}}}"#;

#[test]
fn a_pod_without_a_node_agent_brings_its_own_proxy_and_is_closed_until_that_is_back() {
    in_lab(Lab::builder().nodes(1), |lab| {
        let pair = Pair::between(lab, ("client", 0), ("web", 0))?;
        lab.namespace("side").plain()?;
        let stranger = lab.pod("side/stranger").start()?;
        let pod = lab
            .pod("side/own")
            .service_account("own")
            .label("istio.io/dataplane-mode", "none")
            .annotation("ambient.istio.io/redirection", "enabled")
            .annotation("sidecar.istio.io/status", "{}")
            .without_waiting()
            .start()?;
        let program = |name: &str| lab.bin_dir().join(name).display().to_string();
        let agent = program("ambit-cni-agent");
        let doors = "--exempt-inbound-ports=15020,15021";
        pod.exec([&*agent, "capture", "up", doors])?.success()?;
        let token = pod.dir().join("token");
        fs::write(&token, lab.token(&pod, "own")?.trim())?;
        let ztunnel = program("ztunnel");
        // As it is put into pods: root's rights are these, and no more.
        let rights = ["setpriv", "--bounding-set=-all,+net_raw", "--inh-caps=-all"];
        let proxy = |log: &str| {
            pod.command([&rights[..], &[&*ztunnel, "keep", "proxy", "ztunnel"]].concat())?
                .env("PROXY_MODE", "dedicated")
                .env("PROXY_WORKLOAD_INFO", "side/own/own")
                .env("INSTANCE_IP", &pod.ip().to_string())
                .env("AUTH_TOKEN", &token.display().to_string())
                .env("XDS_ROOT_CA", &lab.root_cert().display().to_string())
                .env("ISTIO_KUBE_APP_PROBERS", PROBES)
                .spawn(log)
        };
        let first = proxy("ztunnel")?;
        let echo = Server::echo(&pod, 8080)?;
        let there = lab.access_log(0)?.from_now();
        talk_soon(&pod, pair.at())?;
        talk_soon(&pair.client, pod.at(8080))?;
        let record = there.find("what the pod said", |it| {
            it.inbound() && it.field("src.workload") == "own" && it.error().is_empty()
        })?;
        ensure!(record.field("src.identity") == pod.identity(), "{record:?}");
        ensure!(
            echo.peers()
                .iter()
                .any(|peer| peer.ip() == pair.client.ip()),
            "its application sees its client"
        );

        // Its proxy is the one that decides about either end of what is its, and says so to who asks.
        for (end, source, destination) in [
            ("leaving", &pod, pair.at()),
            ("arriving", &pair.client, pod.at(8080)),
        ] {
            let (source, destination) = (source.ip().to_string(), destination.to_string());
            let ambit = program("ambit");
            let own = "--proxy=127.0.0.1:15000";
            let words = [&*ambit, "explain", own, "-o", "json", &source, &destination];
            let said: Value = serde_json::from_str(&pod.exec(words)?.stdout)?;
            ensure!(said["verdict"] == "allowed", "{said:#}");
            ensure!(said["answers"][end]["decides"] == true, "{said:#}");
        }

        // As kubelet asks: in the clear, where nothing else in the clear is let in.
        lab.apply_yaml("strict", STRICT)?;
        wait::until_true("plain text is refused", SOON, || {
            refused(&stranger, pod.at(8080)).is_ok()
        })?;
        let asked = |path: &str| {
            let mut stream = stranger.connect(pod.at(15021))?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, anyhow::Error>(answer)
        };
        for (path, status) in [
            ("/healthz/ready", " 200 "),
            ("/app-health/app/readyz", " 200 "),
            ("/app-health/app/livez", " 503 "),
            ("/app-health/app/startupz", " 404 "),
        ] {
            let answer = asked(path)?;
            ensure!(
                answer.lines().next().is_some_and(|it| it.contains(status)),
                "{path}: {answer}"
            );
        }

        first.kill();
        refused(&pair.client, pod.at(8080))?;
        refused(&pod, pair.at())?;
        refused(&stranger, pod.at(8080))?;
        let _second = proxy("ztunnel-again")?;
        talk_soon(&pair.client, pod.at(8080))?;
        talk_soon(&pod, pair.at())
    });
}

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: side}\nspec: {mtls: {mode: STRICT}}\n";
