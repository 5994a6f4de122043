package flavor

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestShares(t *testing.T) {
	t.Parallel()
	f := Flavor{VCPUs: 1, MemoryMB: 64, ExtraSpecs: map[string]string{
		"lxc:share:tools": "/opt/tools", "lxc:share:data": "/srv/data", "lxc:pids": "100", "quota:cpu_shares": "10",
	}}
	got, err := Shares(f)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Share{{"data", "srv/data"}, {"tools", "opt/tools"}}, got); diff != "" {
		t.Error(diff)
	}
	_, warnings, err := FromSpecs(f, Policy{})
	if err != nil || len(warnings) > 0 {
		t.Errorf("warnings %v, error %v", warnings, err)
	}
	if got, err := Shares(Flavor{}); err != nil || got != nil {
		t.Errorf("without: %v, %v", got, err)
	}
	// An ephemeral disk is at /mnt only if there is one.
	f.ExtraSpecs = map[string]string{"lxc:share:data": "/mnt"}
	if _, err := Shares(f); err != nil {
		t.Error(err)
	}
}

func TestSharesRefused(t *testing.T) {
	t.Parallel()
	for name, specs := range map[string]map[string]string{
		"relative":            {"lxc:share:a": "srv"},
		"empty":               {"lxc:share:a": ""},
		"root":                {"lxc:share:a": "/"},
		"up":                  {"lxc:share:a": "/srv/../etc"},
		"up only":             {"lxc:share:a": "/.."},
		"not clean":           {"lxc:share:a": "/srv//a"},
		"slash at the end":    {"lxc:share:a": "/srv/"},
		"blank":               {"lxc:share:a": "/srv/a b"},
		"line":                {"lxc:share:a": "/srv\nlxc.hook.start = /bin/sh"},
		"null":                {"lxc:share:a": "/srv\x00"},
		"octal":               {"lxc:share:a": `/srv\040a`},
		"colon":               {"lxc:share:a": "/srv:ro"},
		"proc":                {"lxc:share:a": "/proc"},
		"below proc":          {"lxc:share:a": "/proc/self/attr"},
		"sys":                 {"lxc:share:a": "/sys/fs/cgroup"},
		"dev":                 {"lxc:share:a": "/dev/shm"},
		"config drive":        {"lxc:share:a": "/config-drive/openstack"},
		"one place for two":   {"lxc:share:a": "/srv", "lxc:share:b": "/srv"},
		"below another":       {"lxc:share:a": "/srv", "lxc:share:b": "/srv/b"},
		"above another":       {"lxc:share:a": "/srv/b", "lxc:share:b": "/srv"},
		"no name":             {"lxc:share:": "/srv"},
		"path as name":        {"lxc:share:../x": "/srv"},
		"hidden name":         {"lxc:share:.x": "/srv"},
		"ephemeral disk":      {"lxc:share:a": "/mnt"},
		"next ephemeral disk": {"lxc:share:a": "/mnt/ephemeral1"},
	} {
		f := Flavor{VCPUs: 1, MemoryMB: 64, EphemeralGB: 1, ExtraSpecs: specs}
		_, err := Shares(f)
		if _, ok := errors.AsType[*InvalidError](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, err := FromSpecs(f, Policy{}); err == nil {
			t.Errorf("%s: the flavor is taken", name)
		}
	}
	privileged := Flavor{VCPUs: 1, MemoryMB: 64, ExtraSpecs: map[string]string{"lxc:share:a": "/srv", "lxc:privileged_allowed": "true"}}
	_, _, err := FromSpecs(privileged, Policy{AllowPrivileged: true})
	if _, ok := errors.AsType[*UnsupportedError](err); !ok {
		t.Errorf("privileged: %v", err)
	}
}
