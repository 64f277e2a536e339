package manifests_test

import (
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// CloudNativePG names a cluster's Secrets and labels its pods by the cluster's name. The chart's values
// name the same ones.
func TestChartFindsTheDatabase(t *testing.T) {
	t.Parallel()
	values := valuesIn(t, "charts/orders/ci/postgres-values.yaml")
	for _, environment := range []string{"dev", "production", "backup"} {
		cluster := kinds(t, kustomize(t, "k8s/postgres/"+environment), "Cluster")[0]
		name := field[string](cluster, "metadata", "name")
		want := document{"existingSecret": name + "-app", "sslMode": "verify-full", "caSecret": name + "-ca"}
		if diff := cmp.Diff(want, values["database"]); diff != "" {
			t.Errorf("%s: the database (-want +got):\n%s", environment, diff)
		}
		pods := document{"cnpg.io/cluster": name}
		peers := field[[]any](values, "networkPolicy", "database", "to")
		if diff := cmp.Diff([]any{document{"podSelector": document{"matchLabels": pods}}}, peers); diff != "" {
			t.Errorf("%s: the peers (-want +got):\n%s", environment, diff)
		}
		for _, policy := range kinds(t, kustomize(t, "k8s/postgres/"+environment), "NetworkPolicy") {
			if diff := cmp.Diff(pods, field[document](policy, "spec", "podSelector", "matchLabels")); diff != "" {
				t.Errorf("%s: the pods of the policy (-want +got):\n%s", environment, diff)
			}
		}
	}
}

// What production has acknowledged is on two disks, in two zones, and no instance without it is
// promoted.
func TestProductionLosesNoAcknowledgedOrder(t *testing.T) {
	t.Parallel()
	for _, overlay := range []string{"production", "backup", "restore"} {
		spec := field[document](kinds(t, kustomize(t, "k8s/postgres/"+overlay), "Cluster")[0], "spec")
		got := document{
			"instances":   spec["instances"],
			"affinity":    spec["affinity"],
			"synchronous": field[document](spec, "postgresql", "synchronous"),
		}
		want := document{
			"instances":   3,
			"affinity":    document{"topologyKey": "topology.kubernetes.io/zone", "podAntiAffinityType": "required"},
			"synchronous": document{"method": "any", "number": 1, "dataDurability": "required", "failoverQuorum": true},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", overlay, diff)
		}
	}
}

// A replica that gets no connection responds with 503. There are most of them in a rollout, while both
// autoscalers are at their end.
func TestProductionHasConnectionsForAllReplicas(t *testing.T) {
	t.Parallel()
	values := valuesIn(t, "charts/orders/values.yaml")
	replicas := 0
	for _, service := range []string{"cart", "order"} {
		replicas += field[int](values, service, "autoscaling", "maxReplicas") + 1
	}
	// sqldb opens at most this many on a node with many processors. Others are for the operator, the
	// standbys and people.
	const each, others = 16, 20
	for _, overlay := range []string{"production", "backup", "restore"} {
		cluster := kinds(t, kustomize(t, "k8s/postgres/"+overlay), "Cluster")[0]
		text := field[string](cluster, "spec", "postgresql", "parameters", "max_connections")
		if got, err := strconv.Atoi(text); err != nil || got < replicas*each+others {
			t.Errorf("%s: max_connections is %q, want at least %d", overlay, text, replicas*each+others)
		}
	}
}

// The restored database stands beside the first one, and neither writes over the other's backups. Those
// have the cluster's name as their path.
func TestRestoredDatabaseIsAnotherOne(t *testing.T) {
	t.Parallel()
	first := kinds(t, kustomize(t, "k8s/postgres/backup"), "Cluster")[0]
	restored := kinds(t, kustomize(t, "k8s/postgres/restore"), "Cluster")[0]
	source := field[[]any](restored, "spec", "externalClusters")[0].(document)
	got := document{
		"name":      field[string](restored, "metadata", "name"),
		"bootstrap": field[string](restored, "spec", "bootstrap", "recovery", "source"),
		"from":      field[string](source, "plugin", "parameters", "serverName"),
		"owner":     field[string](restored, "spec", "bootstrap", "recovery", "owner"),
	}
	want := document{
		"name":      "orders-db-restored",
		"bootstrap": source["name"],
		"from":      field[string](first, "metadata", "name"),
		"owner":     field[string](first, "spec", "bootstrap", "initdb", "owner"),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, o := range documents(t, kustomize(t, "k8s/postgres/restore")) {
		if o["kind"] == "ObjectStore" {
			t.Error("the ObjectStore of the example takes the place of the one that is restored from")
		}
	}
	for _, kind := range []string{"NetworkPolicy", "ScheduledBackup"} {
		for _, o := range kinds(t, kustomize(t, "k8s/postgres/restore"), kind) {
			if name := field[string](o, "metadata", "name"); name != "orders-db-restored" {
				t.Errorf("the %s %s is the first database's", kind, name)
			}
		}
	}
}
