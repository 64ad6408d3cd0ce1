//! Every test, a sentence each. Quiet ones disturb nobody and run a few at a time; loud ones restart parts of the mesh and run alone.

use std::time::Duration;

use crate::run::{Case, LIMIT};

mod admission;
mod authority;
mod certificates;
mod command;
mod control;
mod dedicated;
mod disturb;
mod egress;
mod enrol;
mod identity;
mod installer;
mod kinds;
mod machines;
mod outage;
mod plain;
mod plugin;
mod policy;
mod probes;
mod removal;
mod rpc;
mod scale;
mod scrape;
mod services;
mod status;
mod taint;
mod udp;
mod upgrade;
mod waypoint;
mod wire;
mod workloads;

macro_rules! cases {
    ($loud:literal: $($module:ident { $($name:ident $(<= $seconds:literal)?)+ })+) => {
        [$($(Case {
            name: concat!(stringify!($module), "::", stringify!($name)),
            loud: $loud,
            limit: limit(&[$($seconds)?]),
            body: |test| Box::pin($module::$name(test)),
        },)+)+]
    };
}

/// `a_test <= 600`: seconds that it may take, where the usual ones are too few.
fn limit(own: &[u64]) -> Duration {
    own.first()
        .map_or(LIMIT, |seconds| Duration::from_secs(*seconds))
}

/// All tests in the order in which they run.
pub fn all() -> Vec<Case> {
    let quiet = cases! { false:
        identity {
            across_nodes_the_server_side_sees_the_clients_account
            on_one_node_the_server_side_sees_the_clients_account
            a_reused_address_never_answers_for_the_pod_that_had_it
            a_label_on_a_running_pod_wins_over_its_namespace
        }
        enrol {
            a_busy_namespace_enters_the_mesh_and_nothing_fails
            a_busy_namespace_leaves_the_mesh_and_nothing_fails
            a_busy_deployment_is_replaced_and_nothing_fails
            a_busy_pod_is_deleted_and_nothing_fails
        }
        probes {
            every_kind_of_probe_works_under_strict
            a_pod_whose_application_is_down_is_not_ready
            other_processes_of_the_node_do_not_pass_as_kubelet
        }
        policy {
            a_policy_allows_by_principal_and_the_refusal_names_it
            a_policy_denies_by_principal_and_names_itself
            a_policy_allows_by_service_account
            a_policy_allows_by_namespace
            a_policy_allows_by_address
            a_policy_denies_one_port_and_leaves_the_other
            a_policy_with_a_selector_leaves_other_pods_alone
            deny_comes_before_allow
            a_policy_without_rules_denies_everybody
            a_new_denial_ends_connections_that_are_open
            plain_text_passes_in_permissive_and_is_refused_in_strict
            a_port_may_be_let_off_strict
            the_status_of_a_policy_says_whether_it_is_in_force
        }
        services {
            a_cluster_address_reaches_every_pod_behind_it
            a_node_port_answers_on_every_node
            a_headless_service_with_a_stateful_set_gives_each_pod_a_name
            an_external_name_leads_to_the_service_it_names
            a_dual_stack_service_is_reached_by_both_families
            the_api_server_and_the_name_server_are_reached_from_the_mesh
        }
        workloads {
            a_pod_in_the_nodes_network_stays_outside
            a_daemon_set_is_in_the_mesh_on_every_node
            a_job_calls_the_mesh_from_its_first_instruction_and_completes
            nginx_redis_and_postgres_serve_their_own_clients
        }
        rpc {
            grpc_calls_and_streams_pass_by_policy_across_nodes
        }
        kinds {
            a_daemon_set_behind_a_local_service_answers_on_the_callers_node
            a_stateful_pod_keeps_its_name_when_its_address_changes
            a_host_port_leads_to_a_meshed_pod_until_strict
            an_init_container_is_in_the_mesh_already
            a_pod_in_the_nodes_network_is_refused_in_strict
        }
        plain {
            a_refused_plain_client_is_reset_and_the_log_says_why
            the_api_server_knows_a_meshed_pods_account_and_keeps_it_informed
            names_mean_the_same_in_the_mesh_as_outside
        }
        wire {
            between_nodes_only_tls_to_15008_crosses_the_link
            an_address_that_changes_hands_brings_no_rights_along
            an_address_that_changes_hands_is_reached_under_the_right_identity_only
        }
        udp {
            datagrams_cross_nodes_in_a_tunnel_and_a_policy_refuses_them_by_name
            a_plain_datagram_is_refused_in_strict_where_the_server_opted_in
        }
        dedicated {
            they_talk_both_ways_with_ambient_pods_under_policies
            a_job_completes
            labels_decide_and_what_cannot_be_meant_is_refused_by_name
        }
        machines {
            a_machine_joins_serves_and_calls_under_policy_and_is_taken_out_for_good <= 600
        }
        egress {
            a_label_closes_a_namespace_to_the_unknown_and_a_service_entry_opens_one
        }
        plugin {
            cnitool_adds_checks_and_deletes_in_every_version
        }
        command {
            enroll_takes_running_pods_in_and_unenroll_lets_them_go
            check_finds_this_cluster_fit_and_names_what_is_in_the_way
            a_dump_holds_what_helps_and_no_secret
            completion_is_a_script_that_bash_takes
            what_keeps_ambit_from_the_cluster_is_said_in_one_line
        }
        certificates {
            the_roots_in_a_namespace_come_back_when_they_are_deleted_or_changed
        }
        scrape {
            prometheus_finds_every_part_and_traffic_under_istios_labels
        }
        admission {
            what_is_wrong_is_refused_by_field_with_the_remedy_and_nobody_else_feels_it
        }
    };
    let loud = cases! { true:
        disturb {
            the_node_agent_is_replaced_and_nothing_is_lost
            the_control_plane_is_replaced_and_nothing_is_lost
            ztunnel_is_killed_and_its_pods_recover
            a_ztunnels_worker_is_killed_and_no_new_connection_is_refused
            a_new_pod_waits_while_the_agent_is_away_and_then_starts
            the_agent_mends_what_it_installed
            a_pod_that_started_without_the_plugin_is_brought_in
        }
        machines {
            the_control_plane_is_replaced_and_no_machine_is_lost
        }
        dedicated {
            they_go_on_beside_whatever_is_replaced_and_none_is_made_without_a_proxy
        }
        upgrade {
            open_connections_outlive_two_roll_outs_of_ztunnel
            the_engine_is_changed_and_changed_back_under_load
        }
        status {
            status_finds_nothing_and_then_each_thing_that_is_wrong
        }
        waypoint {
            a_waypoint_is_asked_for_runs_and_goes_with_its_gateway
            a_waypoint_is_made_as_its_parameters_say_within_bounds
            every_feature_does_what_its_file_says <= 600
            requests_pass_a_waypoint_by_route_and_policy
            a_waypoint_is_replaced_under_load_and_no_request_is_lost
            a_canary_waypoint_takes_its_share_and_an_object_chooses_its_own
            a_waypoint_that_is_full_says_so_and_serves_the_others
            a_waypoint_of_another_namespace_takes_what_names_it_and_nothing_else
            while_no_pod_of_a_waypoint_runs_its_traffic_is_refused
            tokens_faults_and_limits_hold_at_a_waypoint
            our_classes_are_accepted_and_a_gateway_of_an_unknown_class_is_left_alone
            an_east_west_gateway_runs_and_leads_who_comes_from_elsewhere_to_a_service
        }
        installer {
            the_agents_own_configuration_outlives_what_the_network_writes
        }
        taint {
            a_node_keeps_its_taint_until_its_agent_is_ready
        }
        authority {
            an_intermediate_is_plugged_in_replaced_and_taken_away_under_load
            a_signer_that_the_chart_names_is_waited_for_replaced_and_left_under_load
        }
        control {
            the_leader_is_killed_under_writes_and_another_goes_on
        }
        admission {
            a_policy_that_got_past_the_webhook_denies_and_says_why
        }
        // The long ones: where a run has no time for all, they are what it leaves out.
        disturb {
            without_a_control_plane_what_is_known_goes_on
        }
        certificates {
            certificates_are_renewed_and_the_root_is_replaced_under_load <= 600
        }
        outage {
            without_an_api_server_traffic_goes_on_and_changes_arrive_when_it_is_back
        }
        scale {
            with_5000_pods_a_change_is_soon_at_every_ztunnel
        }
        removal {
            the_mesh_is_removed_by_either_hand_and_pods_go_on_talking <= 600
        }
    };
    quiet.into_iter().chain(loud).collect()
}
