//! Machines that are no pods, in a real cluster: they join by a token that `ambit` had made, are registered, judged and taken out.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    mesh::{Part, SYSTEM},
    place::Place,
    pod::Pod,
    program::{ambit, kubectl},
    run::Test,
    vm::Vm,
    wait::eventually,
};

const VERSION: &str = "networking.istio.io/v1";
const ENTRY: (&str, &str) = (VERSION, "WorkloadEntry");

/// A group whose machines are well while a file is there, and the service that they are behind.
fn group(vm: &Vm) -> String {
    format!(
        "apiVersion: {VERSION}\nkind: WorkloadGroup\nmetadata: {{name: db}}\nspec:\n  metadata: {{labels: {{app: db}}}}\n  \
         template: {{serviceAccount: db}}\n  probe: {{periodSeconds: 1, failureThreshold: 1, exec: {{command: [test, -e, {}]}}}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: db}}\nspec: {{selector: {{app: db}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n",
        vm.well()
    )
}

/// Policy of an app: who alone may call it, or who may not.
fn policy(place: &Place, app: &str, action: &str, account: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {app}}}\nspec:\n  selector: {{matchLabels: {{app: {app}}}}}\n  \
         action: {action}\n  rules: [{{from: [{{source: {{principals: [cluster.local/ns/{}/sa/{account}]}}}}]}}]\n",
        place.name
    )
}

/// The whole life of a machine: a token, a WorkloadEntry, calls both ways under policy, ill and well again, a token that is used a second time,
/// gone and back, and taken out for good.
pub(super) async fn a_machine_joins_serves_and_calls_under_policy_and_is_taken_out_for_good(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let number: u64 = shop.name.bytes().map(u64::from).sum::<u64>() % 250;
    let vm = Vm::new(&test.cluster, test.node(1), u8::try_from(number)?);
    let result = life(test, &shop, &vm).await;
    vm.remove().await?;
    result
}

/// Every replica of the control plane is replaced: the machine goes to another, and no call to it fails meanwhile.
pub(super) async fn the_control_plane_is_replaced_and_no_machine_is_lost(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("hall").await?;
    let vm = Vm::new(&test.cluster, test.node(1), 251);
    let result = replaced(test, &shop, &vm).await;
    vm.remove().await?;
    result
}

async fn replaced(test: &Test, shop: &Place, vm: &Vm) -> Result<()> {
    vm.remove().await?;
    vm.set_up().await?;
    let phone = shop.client("phone").on(test.node(0)).start().await?;
    shop.apply(&group(vm)).await?;
    joins(shop, vm).await?;
    vm.is_well(true).await?;
    phone.reaches("http://db/").await?;
    let before = entry(test, shop).await?;
    let load = phone
        .load("http://db/", &["--fresh", "10", "--kept", "2"])
        .await?;
    test.mesh().restart(Part::Istiod).await?;
    vm.knows_the_control_plane().await?;
    let controller = |entry: &Value| {
        let annotations = &entry["metadata"]["annotations"];
        annotations["istio.io/workloadController"]
            .as_str()
            .map(str::to_owned)
    };
    eventually("another replica has the machine", || async {
        let now = entry(test, shop).await?;
        ensure!(
            controller(&now).is_some() && controller(&now) != controller(&before),
            "{now}"
        );
        Ok(())
    })
    .await?;
    says(test, shop, true, "").await?;
    let tally = load.tally().await?;
    ensure!(tally.failures() == 0 && tally.answers() > 0, "{tally}");
    // And it is the one that looks after it.
    vm.is_well(false).await?;
    says(test, shop, false, "test").await?;
    phone.is_refused("http://db/").await
}

/// With a token, as `db-1`.
async fn joins(shop: &Place, vm: &Vm) -> Result<()> {
    let words = [
        "vm",
        "token",
        "--namespace",
        &shop.name,
        "--service-account",
        "db",
    ];
    let rest = ["--group", "db", "--name", "db-1", "--address", &vm.address];
    let token = ambit(&[&words[..], &rest].concat()).await?.with(0)?.out;
    vm.give_token(&token).await?;
    vm.serve("db-1").await?;
    vm.proxy(&format!("{}/db-1/db", shop.name), "membership")
        .await
}

async fn life(test: &Test, shop: &Place, vm: &Vm) -> Result<()> {
    vm.remove().await?;
    vm.set_up().await?;
    let phone = shop.client("phone").on(test.node(0)).start().await?;
    let thief = shop.client("thief").on(test.node(1)).start().await?;
    shop.server("web").on(test.node(0)).start().await?;
    let (db, web) = (
        "http://db/",
        format!("http://web.{}.svc.cluster.local/", shop.name),
    );
    shop.apply(&group(vm)).await?;
    not_made_for_a_machine_not_touched(shop).await?;

    // It joins, has an entry, and is spared until it says that it is well.
    joins(shop, vm).await?;
    let whom = format!("{}/db-1/db", shop.name);
    says(test, shop, false, "").await?;
    let entry = entry(test, shop).await?;
    registered(&entry, vm)?;
    phone.is_refused(db).await?;
    vm.is_well(true).await?;
    says(test, shop, true, "").await?;
    let answer = phone.reaches(db).await?;
    ensure!(answer.pod == "db-1", "{answer:?}");
    let answer = vm.reaches(&web).await?;
    ensure!(answer.from == vm.address, "{answer:?}");

    // Both ways under policy, by identity.
    thief.reaches(db).await?;
    shop.apply(&policy(shop, "db", "ALLOW", "phone")).await?;
    thief.is_refused(db).await?;
    phone.reaches(db).await?;
    let no_machines = policy(shop, "web", "DENY", "db");
    shop.apply(&no_machines).await?;
    vm.is_refused(&web).await?;
    phone.reaches("http://web/").await?;
    shop.remove(&no_machines).await?;
    vm.reaches(&web).await?;

    // Not well, and well again.
    vm.is_well(false).await?;
    says(test, shop, false, "test").await?;
    phone.is_refused(db).await?;
    vm.is_well(true).await?;
    phone.reaches(db).await?;

    // Gone; its token, with another key, opens nothing, and its owners hear of that.
    vm.end_proxy().await?;
    eventually("its entry says that it is gone", || async {
        let annotations = self::entry(test, shop).await?["metadata"]["annotations"].clone();
        ensure!(
            annotations["istio.io/disconnectedAt"].is_string(),
            "{annotations}"
        );
        Ok(())
    })
    .await?;
    phone.is_refused(db).await?;
    vm.proxy(&whom, "stolen").await?;
    vm.says("the join token was used before with another key")
        .await?;
    event(test, shop, "db JoinTokenReused: the join token for").await?;
    vm.end_proxy().await?;

    // Back as who it was, by what it kept.
    vm.proxy(&whom, "membership").await?;
    phone.reaches(db).await?;
    vm.reaches(&web).await?;
    let list = ambit(&["vm", "list"]).await?.with(0)?.out;
    ensure!(
        list.contains(&format!("\"namespace\":\"{}\"", shop.name)),
        "{list}"
    );

    // Taken out: its entry goes, and it does not come back.
    let reference = format!("{}/db-1", shop.name);
    ambit(&["vm", "remove", &reference]).await?.with(0)?;
    eventually("its entry is gone", || async {
        ensure!(self::entry(test, shop).await.is_err(), "it is there");
        Ok(())
    })
    .await?;
    phone.is_refused(db).await?;
    vm.end_proxy().await?;
    vm.proxy(&whom, "membership").await?;
    vm.says("no such machine has joined, or it was taken out")
        .await?;
    let said = vm.get(&web).await?;
    ensure!(!said.success, "it still calls: {}", said.out);
    event(test, shop, "db MachineUnknown: ").await?;
    let list = ambit(&["vm", "list"]).await?.with(0)?.out;
    ensure!(
        !list.contains(&format!("\"namespace\":\"{}\"", shop.name)),
        "{list}"
    );
    unregistered_stays_out(test, shop, &phone).await
}

/// Whatever the role of the control plane allows: an entry of somebody's hand is nothing to it.
async fn not_made_for_a_machine_not_touched(shop: &Place) -> Result<()> {
    shop.apply(&format!(
        "apiVersion: {VERSION}\nkind: WorkloadEntry\nmetadata: {{name: mine}}\nspec: {{address: 192.0.2.77}}\n"
    ))
    .await?;
    let istiod = format!("system:serviceaccount:{SYSTEM}:istiod");
    let delete = [
        "delete",
        "workloadentry",
        "mine",
        "-n",
        &shop.name,
        "--as",
        &istiod,
    ];
    let refused = kubectl(&delete, "").await?.with(1)?;
    refused
        .says("only those that it made for machines")
        .map(drop)
}

/// As Istio's own auto-registration says it.
fn registered(entry: &Value, vm: &Vm) -> Result<()> {
    let metadata = &entry["metadata"];
    let annotation = |key: &str| metadata["annotations"][key].as_str().unwrap_or_default();
    ensure!(
        annotation("istio.io/autoRegistrationGroup") == "db",
        "{entry}"
    );
    ensure!(
        annotation("istio.io/workloadController").starts_with("istiod-"),
        "{entry}"
    );
    ensure!(!annotation("istio.io/connectedAt").is_empty(), "{entry}");
    let owner = &metadata["ownerReferences"][0];
    ensure!(
        owner["kind"] == "WorkloadGroup" && owner["name"] == "db",
        "{entry}"
    );
    ensure!(entry["spec"]["address"] == json!(vm.address), "{entry}");
    ensure!(
        entry["spec"]["serviceAccount"] == "db" && metadata["labels"]["app"] == "db",
        "{entry}"
    );
    Ok(())
}

/// Whom nobody registered nobody reaches: also while somebody asks again.
async fn unregistered_stays_out(test: &Test, shop: &Place, phone: &Pod) -> Result<()> {
    ensure!(entry(test, shop).await.is_err(), "it came back");
    phone.is_refused("http://db/").await
}

async fn entry(test: &Test, shop: &Place) -> Result<Value> {
    let object = test
        .cluster
        .object(&shop.name, ENTRY.0, ENTRY.1, "db-1")
        .await?;
    serde_json::to_value(object).context("the entry as JSON")
}

/// Waits until its condition says so.
async fn says(test: &Test, shop: &Place, healthy: bool, why: &str) -> Result<()> {
    let status = if healthy { "True" } else { "False" };
    eventually(&format!("condition Healthy is {status}"), || async {
        let entry = entry(test, shop).await?;
        let conditions = entry["status"]["conditions"].as_array().cloned();
        let found = conditions
            .into_iter()
            .flatten()
            .find(|it| it["type"] == "Healthy");
        let found = found.with_context(|| format!("{entry}"))?;
        let message = found["message"].as_str().unwrap_or_default();
        ensure!(
            found["status"] == status && message.contains(why),
            "{found}"
        );
        Ok(())
    })
    .await
}

async fn event(test: &Test, shop: &Place, words: &str) -> Result<()> {
    eventually(&format!("an Event {words:?}"), || async {
        let events = test.cluster.events(&shop.name).await?;
        ensure!(events.iter().any(|it| it.starts_with(words)), "{events:#?}");
        Ok(())
    })
    .await
}
