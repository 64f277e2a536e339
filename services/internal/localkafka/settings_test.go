package localkafka

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestConfigureOverrides(t *testing.T) {
	dir := t.TempDir()
	k := &Broker{ID: 2, options: Options{Dir: dir, Settings: map[string]string{
		"auto.create.topics.enable":         "true", // instead
		"group.consumer.session.timeout.ms": "",     // Kafka's default
		"message.max.bytes":                 "2000", // besides
	}}}
	if err := k.configure("127.0.0.1:1", "", []string{"127.0.0.1:2", "127.0.0.1:3"}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "server.properties"))
	if err != nil {
		t.Fatal(err)
	}
	got := parseProperties(string(text))
	want := map[string]string{
		"auto.create.topics.enable":            "true",
		"message.max.bytes":                    "2000",
		"group.consumer.heartbeat.interval.ms": "500",
		"process.roles":                        "broker,controller",
		"log.dirs":                             filepath.Join(dir, "data"),
		"node.id":                              "2",
		"controller.quorum.voters":             "1@127.0.0.1:2,2@127.0.0.1:3",
		"listeners":                            "PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:3",
	}
	if diff := cmp.Diff(want, only(want, got)); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	if value, ok := got["group.consumer.session.timeout.ms"]; ok {
		t.Errorf("the session timeout is set to %q", value)
	}
}

func only(names, from map[string]string) map[string]string {
	m := make(map[string]string)
	for name := range names {
		if value, ok := from[name]; ok {
			m[name] = value
		}
	}
	return m
}
