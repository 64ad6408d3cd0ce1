//! The table of who may (`testdata/authorization.txt`), through ztunnels and a waypoint: policies are written to the
//! directory, requests are sent by pods of the accounts that it names, byte by byte as it has them.

#[path = "../pure/authenticate/signer.rs"]
#[allow(dead_code)] // what other tests need of it
pub(crate) mod signer;
#[path = "../pure/authorize/table.rs"]
#[allow(dead_code)] // the same
mod table;

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::{Lab, Pod, Service, Waypoint};
use serde_json::{Value, json};

use self::table::{Case, Group, groups};
use super::app::App;
use super::shop::turn;

/// What cannot be said with pods of a lab: addresses are the lab's to give, and it has one trust domain.
const ELSEWHERE: [&str; 8] = [
    "ipBlocks",
    "IpBlocks",
    "source.ip",
    "remote.ip",
    "destination.ip",
    "connection.sni",
    "old.local",
    "older.local",
];
/// The policy by which the test knows that a group's are enforced.
const MARK: &str = "zz-mark";
/// For one answer, on a machine busy with debug builds.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn the_table_of_who_may_holds_through_a_waypoint() {
    let _turn = turn();
    let lab = Lab::builder()
        .start()
        .unwrap_or_else(|error| panic!("{error:#}"));
    let ran = Place::open(&lab).and_then(|place| place.all());
    if let Err(error) = ran {
        panic!("{error:?}\nlogs: {}", lab.dir().display());
    }
    lab.stop().unwrap_or_else(|error| panic!("{error:#}"));
}

/// Service `app/shop` (HTTP) and `app/raw` (TCP) behind a waypoint, and a client for each account.
struct Place<'a> {
    lab: &'a Lab,
    clients: HashMap<String, Pod>,
    shop: Service,
    raw: Service,
    waypoint: Waypoint,
    _app: App,
    _runtime: tokio::runtime::Runtime,
}

impl<'a> Place<'a> {
    fn open(lab: &'a Lab) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        lab.namespace("app").behind("way")?;
        let waypoint = lab.waypoint("app/way", 0)?;
        let pod = lab.pod("app/shop").node(0).label("app", "shop").start()?;
        let app = App::start(&runtime, &pod, 8080)?;
        let ports = [80, 81, 8080, 8443].map(|port| (format!("http-{port}"), port, 8080));
        let shop = lab.service_of("app/shop", &named(&ports))?;
        let raw = lab.pod("app/raw").node(0).label("app", "raw").start()?;
        echo(&raw)?;
        let ports = [80, 81, 9000, 9001].map(|port| (format!("tcp-{port}"), port, 7070));
        let raw = lab.service_of("app/raw", &named(&ports))?;
        let place = Self {
            lab,
            clients: clients(lab)?,
            shop,
            raw,
            waypoint,
            _app: app,
            _runtime: runtime,
        };
        lab.apply_yaml("tokens", &request_authentication())?;
        Ok(place)
    }

    fn all(&self) -> Result<()> {
        let (mut run, mut wrong) = (0, Vec::new());
        let here = groups().into_iter().filter(|group| {
            let rules = group.policies.iter().flat_map(|policy| &policy.rules);
            !rules
                .into_iter()
                .any(|rule| ELSEWHERE.iter().any(|word| rule.to_string().contains(word)))
        });
        for (number, group) in here.enumerate() {
            self.apply(number, &group)
                .with_context(|| group.title.clone())?;
            for case in group.cases.iter().filter(|case| can_be_sent(case)) {
                run += 1;
                if let Err(error) = self.holds(&group, case) {
                    wrong.push(format!("line {} ({}): {error:#}", case.line, group.title));
                }
            }
        }
        ensure!(
            wrong.is_empty(),
            "{} of {run} are wrong:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        ensure!(run >= 300, "only {run} cases were run");
        Ok(())
    }

    /// Puts the group's policies in the place of the last one's, and waits until they are all there is, and enforced:
    /// with them comes one that denies what is marked with their number.
    fn apply(&self, number: usize, group: &Group) -> Result<()> {
        let mark = json!({
            "name": MARK,
            "action": "DENY",
            "rules": [{"when": [{"key": "request.headers[x-mark]", "values": [number.to_string()]}]}],
        });
        let policies = group.policies.iter().map(|policy| {
            json!({
                "name": format!("g{number}-{}", policy.name),
                "action": policy.action,
                "dry_run": policy.dry_run,
                "provider": policy.provider,
                "rules": policy.rules,
            })
        });
        let yaml: Vec<String> = policies
            .chain([mark])
            .map(|policy| object(&policy))
            .collect();
        self.lab.apply_yaml("group", &yaml.join("---\n"))?;
        let names = group
            .policies
            .iter()
            .map(|policy| format!("g{number}-{}", policy.name));
        let expected: BTreeSet<String> = names.chain([MARK.to_owned()]).collect();
        let marked = format!(
            "GET /mark HTTP/1.1\r\nhost: shop\r\nx-mark: {number}\r\nconnection: close\r\n\r\n"
        );
        let begun = Instant::now();
        loop {
            let known = self.known();
            let answered = self.http(&self.clients["app/client"], 80, marked.as_bytes());
            let all = known.as_ref().is_ok_and(|known| *known == expected);
            if all && answered.as_ref().is_ok_and(|status| *status == 403) {
                return Ok(());
            }
            if begun.elapsed() > 3 * SOON {
                bail!("{expected:?} did not come, there are {known:?}: {answered:?}");
            }
            pause();
        }
    }

    /// The policies that the waypoint has.
    fn known(&self) -> Result<BTreeSet<String>> {
        let dump = self.waypoint.pod().config_dump()?;
        let resources = dump["resources"].as_array().context("resources")?;
        let keys = resources
            .iter()
            .filter_map(|resource| resource["key"].as_str());
        let name = |key: &str| Some(key.strip_prefix("authorizationpolicy/app/")?.to_owned());
        Ok(keys.filter_map(name).collect())
    }

    fn holds(&self, group: &Group, case: &Case) -> Result<()> {
        let refused_anyway = group.title.contains("(the control plane refuses it)");
        let expected = match &*case.verdict {
            "400" => 400,
            "allow" if !refused_anyway => 200,
            _ => 403,
        };
        let mut found = self.asked(case);
        // Once more: a busy machine may lose a connection. Nothing excuses who passed and must not.
        for _ in 0..3 {
            match found {
                Ok(found) if found == expected => return Ok(()),
                Ok(200) => break,
                _ => pause(),
            }
            found = self.asked(case);
        }
        if found.as_ref().is_ok_and(|found| *found == expected) {
            return Ok(());
        }
        bail!("{found:?} and not {expected}")
    }

    fn asked(&self, case: &Case) -> Result<u16> {
        let identity = case.identity.as_ref().context("an account")?;
        let client = &self.clients[&format!("{}/{}", identity.0, identity.1)];
        if case.tcp {
            return self.bytes(client, case.port);
        }
        let mut head = format!(
            "{} {} HTTP/1.1\r\nhost: {}\r\n",
            case.method, case.path, case.host
        )
        .into_bytes();
        for (name, value) in &case.headers {
            head.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        if let Some(claims) = &case.claims {
            let token = signer::EC.sign(claims);
            head.extend_from_slice(format!("authorization: Bearer {token}\r\n").as_bytes());
        }
        head.extend_from_slice(b"connection: close\r\n\r\n");
        self.http(client, case.port, &head)
    }

    fn http(&self, client: &Pod, port: u16, request: &[u8]) -> Result<u16> {
        let mut stream = open(client, &self.shop, port)?;
        stream.write_all(request)?;
        let mut answer = Vec::new();
        let mut part = [0; 1024];
        while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
            match stream.read(&mut part)? {
                0 => bail!("it ended after {:?}", String::from_utf8_lossy(&answer)),
                length => answer.extend_from_slice(&part[..length]),
            }
        }
        let status = answer
            .get(9..12)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        Ok(status.context("no status")?.parse()?)
    }

    /// 200 if bytes come back, 403 if the connection ends without one.
    fn bytes(&self, client: &Pod, port: u16) -> Result<u16> {
        let mut stream = match open(client, &self.raw, port) {
            Ok(stream) => stream,
            // The reset that a denial is may be there before the connection is looked at.
            Err(why) if is_reset(&why) => return Ok(403),
            Err(why) => return Err(why),
        };
        let sent = stream
            .write_all(b"hello")
            .and_then(|()| stream.shutdown(Shutdown::Write));
        let mut back = Vec::new();
        match sent.and_then(|()| stream.read_to_end(&mut back)) {
            Ok(_) if back == b"hello" => Ok(200),
            _ if back.is_empty() => Ok(403),
            other => bail!("{other:?}: {back:?}"),
        }
    }
}

fn is_reset(why: &anyhow::Error) -> bool {
    let io = why.downcast_ref::<std::io::Error>();
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionReset)
}

fn named(ports: &[(String, u16, u16)]) -> Vec<(&str, u16, u16)> {
    ports
        .iter()
        .map(|(name, port, target)| (&**name, *port, *target))
        .collect()
}

/// Says what it hears.
fn echo(pod: &Pod) -> Result<()> {
    let listener = pod.listen(7070)?;
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut all = Vec::new();
            let _ = stream
                .read_to_end(&mut all)
                .and_then(|_| stream.write_all(&all));
        }
    });
    Ok(())
}

/// A pod for each account that the table asks by.
fn clients(lab: &Lab) -> Result<HashMap<String, Pod>> {
    let groups = groups();
    let cases = groups.iter().flat_map(|group| &group.cases);
    let accounts: BTreeSet<_> = cases.filter_map(|case| case.identity.clone()).collect();
    let namespaces: BTreeSet<_> = accounts.iter().map(|(namespace, _)| namespace).collect();
    for namespace in namespaces
        .into_iter()
        .filter(|namespace| *namespace != "app")
    {
        lab.namespace(namespace).ambient()?;
    }
    let mut clients = HashMap::new();
    for (number, (namespace, account)) in accounts.iter().enumerate() {
        let pod = lab.pod(&format!("{namespace}/c{number}")).node(1);
        let pod = pod.service_account(account).start()?;
        clients.insert(format!("{namespace}/{account}"), pod);
    }
    Ok(clients)
}

fn can_be_sent(case: &Case) -> bool {
    case.identity.is_some()
        && case.trust_domain == "cluster.local"
        && !case.https
        && case.sni.is_none()
}

fn object(policy: &Value) -> String {
    let target = |name: &str| json!({"group": "", "kind": "Service", "name": name});
    let mut targets = vec![target("shop")];
    // A header says nothing about a connection: the mark would deny all of them.
    if policy["name"] != MARK {
        targets.push(target("raw"));
    }
    let mut object = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"namespace": "app", "name": policy["name"]},
        "spec": {
            "targetRefs": targets,
            "action": policy["action"],
            "rules": policy["rules"],
        },
    });
    if policy["dry_run"] == json!(true) {
        object["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    }
    if policy["provider"]
        .as_str()
        .is_some_and(|provider| !provider.is_empty())
    {
        object["spec"]["provider"] = json!({"name": policy["provider"]});
    }
    format!("{object}\n")
}

/// All issuers of the table, with one key.
fn request_authentication() -> String {
    let groups = groups();
    let cases = groups.iter().flat_map(|group| &group.cases);
    let issuer = |case: &Case| Some(case.claims.as_ref()?["iss"].as_str()?.to_owned());
    let issuers: BTreeSet<String> = cases.filter_map(issuer).collect();
    let jwks = json!({"keys": [signer::EC.public]}).to_string();
    let rules: Vec<Value> = issuers
        .into_iter()
        .map(|issuer| json!({"issuer": issuer, "jwks": jwks}))
        .collect();
    let object = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "RequestAuthentication",
        "metadata": {"namespace": "app", "name": "tokens"},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "shop"}], "jwtRules": rules},
    });
    format!("{object}\n")
}

fn open(client: &Pod, service: &Service, port: u16) -> Result<TcpStream> {
    let stream = client.connect(service.at(port))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    Ok(stream)
}

fn pause() {
    #[allow(clippy::disallowed_methods)] // a test's own thread
    std::thread::sleep(Duration::from_millis(30));
}
