package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/compute-agent/compute-agent"

// allowed maps a package, or a tree of packages (ending in "/..."), to what of ours it may import; the first entry that matches
// counts. A package that no entry matches fails the test: new directories are a decision.
var allowed = []struct {
	who  string
	what []string
}{
	{"cmd/compute-agent", []string{"..."}},
	{"tests/functional/...", []string{"tests/functional/...", "internal/nova/capture"}},
	{"internal/archtest", nil},

	// Leaves.
	{"config", nil},
	{"internal/reqctx", nil},
	{"internal/keylock", nil},
	{"internal/metrics", nil},
	{"internal/hostinfo", nil},
	{"internal/idattr", nil},
	{"internal/stopwatch", nil},
	{"internal/fdio", nil},
	{"internal/functest", nil},

	{"flavor", nil},
	{"internal/guestfile", []string{leaves}},
	{"internal/shadow", []string{leaves}},
	{"internal/signature", nil},
	{"internal/serialconsole", []string{"internal/state", leaves}},
	{"rpc/...", []string{"rpc/...", leaves}},
	{"internal/state", []string{"internal/storage", leaves}},
	{"internal/storage/storagetest", []string{"internal/storage/...", "internal/functest", leaves}},
	{"internal/storage/...", []string{"internal/storage/...", leaves}},
	{"internal/transfer", []string{"internal/storage", leaves}},
	{"driver/...", []string{"driver/...", "flavor", "vif", "internal/storage/...", "internal/state", leaves}},
	{"vif/...", []string{"vif/...", leaves}},
	{"imagesync/...", []string{"imagesync/...", leaves}},
	{"internal/configdrive", []string{"internal/storage", "internal/storage/mount", leaves}},
	{"internal/hostshare", []string{"internal/storage", "internal/storage/mount", "internal/storage/storagetest", leaves}},
	{"internal/control", []string{"imagesync/...", leaves}},
	{"internal/openstack/...", []string{"internal/openstack/...", "config", leaves}},
	{"internal/nova/...", []string{"internal/nova/...", "rpc/...", "config", leaves}},
	{"internal/resource", []string{"internal/nova/...", "internal/openstack/placement", "internal/storage", "flavor", "config", leaves}},
	{"internal/compute/console", []string{"driver", "rpc", "internal/nova/...", "internal/serialconsole", "internal/state", leaves}},
	{"internal/compute/diagnostics", []string{"driver", "vif", "internal/nova/...", leaves}},
	{"internal/compute/glanceimage", []string{"flavor", "imagesync", "internal/nova/...", "internal/openstack/...", "internal/signature", leaves}},
	{"internal/compute/inject", []string{"internal/guestfile", "internal/shadow", leaves}},
	{"internal/compute/journal", []string{"internal/state", "rpc", leaves}},
	{"internal/compute/metadata", []string{"internal/configdrive", "internal/nova/...", leaves}},
	{"internal/compute/nowhere", []string{"imagesync", "vif", "internal/configdrive", "internal/storage/...", leaves}},
	{"internal/compute/plugging", []string{"internal/nova/exception", "internal/openstack/neutron", "vif", leaves}},
	{"internal/compute/usage", []string{"internal/nova/...", leaves}},
	{"internal/compute", []string{"..."}},
}

// leaves stands for the packages that import nothing of ours and that anyone may use.
const leaves = "leaves"

var leafPackages = []string{
	"internal/reqctx", "internal/keylock", "internal/metrics", "internal/hostinfo", "internal/idattr", "internal/stopwatch",
	"internal/fdio",
}

// fences map a library to the only trees that may import it.
var fences = map[string][]string{
	"github.com/streadway/amqp":          {"rpc/rabbit"},
	"github.com/rabbitmq/amqp091-go":     {"rpc/rabbit"},
	"github.com/lxc/go-lxc":              {"driver/lxc/..."},
	"github.com/vishvananda/netlink":     {"vif/...", "driver/lxc/..."},
	"github.com/ovn-kubernetes/libovsdb": {"vif/ovs/..."},
	"github.com/gophercloud/gophercloud": {"internal/openstack/..."},
	"github.com/sirupsen/logrus":         {"internal/reqctx", "cmd/compute-agent"},
	"go.etcd.io/bbolt":                   {"internal/state"},
	"github.com/vbauerster/mpb":          {"cmd/compute-agent"},
	"github.com/flosch/pongo2":           {"imagesync/template"},
}

// listed is what `go list -json` tells of a package.
type listed struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
	CgoFiles     []string
}

// ours is the path below the module, "" for somebody else's.
func ours(importPath string) string { return strings.TrimPrefix(importPath, module+"/") }

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-tags", "functional",
		"-json=ImportPath,Imports,TestImports,XTestImports,CgoFiles", "./...")
	cmd.Dir = root(t)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []listed
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("decode go list: %v", err)
		}
		packages = append(packages, p)
	}
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// within reports whether the package is the pattern or below it.
func within(pkg string, patterns ...string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if pattern == leaves {
			return slices.Contains(leafPackages, pkg)
		}
		if tree, ok := strings.CutSuffix(pattern, "..."); ok {
			return tree == "" || pkg+"/" == tree || strings.HasPrefix(pkg, tree)
		}
		return pkg == pattern
	})
}

func TestArrowsPointDown(t *testing.T) {
	t.Parallel()
	for _, p := range list(t) {
		pkg := ours(p.ImportPath)
		i := slices.IndexFunc(allowed, func(rule struct {
			who  string
			what []string
		},
		) bool {
			return within(pkg, rule.who)
		})
		if i < 0 {
			t.Errorf("%s has no place in the architecture: add it to this test and to docs/architecture.md", pkg)
			continue
		}
		for _, imported := range p.Imports {
			if !strings.HasPrefix(imported, module+"/") {
				continue
			}
			if !within(ours(imported), allowed[i].what...) {
				t.Errorf("%s imports %s", pkg, ours(imported))
			}
		}
	}
}

func TestFences(t *testing.T) {
	t.Parallel()
	for _, p := range list(t) {
		pkg := ours(p.ImportPath)
		for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			for library, inside := range fences {
				if (imported == library || strings.HasPrefix(imported, library+"/")) && !within(pkg, inside...) {
					t.Errorf("%s imports %s, which only %v may", pkg, imported, inside)
				}
			}
		}
		if len(p.CgoFiles) > 0 && !within(pkg, "driver/lxc/...") {
			t.Errorf("%s uses cgo, which only driver/lxc may", pkg)
		}
	}
}

// TestBuildsWithoutCgo builds everything but driver/lxc and the command that needs it.
func TestBuildsWithoutCgo(t *testing.T) {
	t.Parallel()
	var packages []string
	for _, p := range list(t) {
		if !within(ours(p.ImportPath), "driver/lxc/...", "cmd/compute-agent") {
			packages = append(packages, p.ImportPath)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"build", "-buildvcs=false"}, packages...)...) // git may refuse another user's folder
	cmd.Dir = root(t)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("build without cgo: %v\n%s", err, out)
	}
}
