package lxc

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Where the kernel shows AppArmor's policy, and where liblxc has apparmor_parser keep what it
// compiled (apparmor.c: APPARMOR_CACHE_DIR), in a directory for each set of the kernel's features.
const (
	appArmorFS    = "/sys/kernel/security/apparmor"
	appArmorCache = "/var/cache/lxc/apparmor"
)

// longProfile is the length above which liblxc replaces the name of a profile by a hash (apparmor.c:shorten_apparmor_name).
const longProfile = 246

// appArmor is the profile to write, "" on hosts without AppArmor.
func (d *Driver) appArmor() string {
	if !appArmorEnabled() {
		return ""
	}
	if d.o.AppArmor != ModeAuto {
		return d.o.AppArmor
	}
	if appArmorParser() {
		return ModeGenerated
	}
	return ModeUnconfined
}

func appArmorEnabled() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(b), "Y")
}

func appArmorParser() bool {
	for _, p := range []string{"/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"} {
		if _, err := os.Stat(p); err == nil {
			return true
		}
	}
	return false
}

// profileName is what liblxc calls the profile that it generates for a container (apparmor.c:apparmor_profile_full).
func profileName(name, lxcPath string) string {
	full := "lxc-" + name + "_<" + lxcPath + ">"
	if len(full) > longProfile {
		hash := fnv.New64a()
		_, _ = hash.Write([]byte(full)) // never fails
		return fmt.Sprintf("%016x", hash.Sum64())
	}
	return full
}

// profileFile is the name of that profile's file and of the policy namespace beside it.
func profileFile(name, lxcPath string) string {
	return strings.ReplaceAll(profileName(name, lxcPath), "/", "-")
}

// unloadProfile takes the generated profile of a guest out of the kernel. Its monitor does, unless it was killed.
// No process of the guest is left: one would be without a profile.
func (d *Driver) unloadProfile(name string) error {
	if !appArmorEnabled() {
		return nil
	}
	namespace := filepath.Join(appArmorFS, "policy/namespaces", profileFile(name, d.o.LXCPath))
	if err := unix.Rmdir(namespace); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove AppArmor namespace: %w", err)
	}
	remove, err := os.OpenFile(filepath.Join(appArmorFS, ".remove"), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // securityfs is not mounted: liblxc could not have loaded one
	}
	if err != nil {
		return fmt.Errorf("remove AppArmor profile: %w", err)
	}
	_, err = remove.WriteString(profileName(name, d.o.LXCPath))
	if err = errors.Join(err, remove.Close()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove AppArmor profile: %w", err)
	}
	return nil
}

// forgetProfile removes the compiled profiles of an instance, which liblxc leaves for ever.
func (d *Driver) forgetProfile(name string) error {
	return removeCompiled(appArmorCache, profileFile(name, d.o.LXCPath))
}

func removeCompiled(cache, file string) error {
	sets, err := os.ReadDir(cache)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for compiled AppArmor profiles: %w", err)
	}
	for _, set := range sets {
		if err := os.Remove(filepath.Join(cache, set.Name(), file)); set.IsDir() && err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove compiled AppArmor profile: %w", err)
		}
	}
	return nil
}
