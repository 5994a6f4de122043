package lxc

import "path/filepath"

// seccompPolicy denies what no guest needs and what would reach the host's kernel as a
// whole: loading kernels and modules, opening files by handle around mount namespaces
// (CVE-2014-3519), forced unmounts, and reading the host's kernel log, which the
// kernel allows to everyone where kernel.dmesg_restrict is off. The ioctls make
// subvolumes and snapshots of a btrfs (linux/btrfs.h: BTRFS_IOC_SUBVOL_CREATE, SNAP_CREATE, and
// both in version 2): a guest's root may, and they would keep what it deletes from its own
// files. The kernel takes the lower half of the number alone.
const seccompPolicy = `2
denylist
reject_force_umount
[all]
kexec_load errno 38
kexec_file_load errno 38
open_by_handle_at errno 38
init_module errno 38
finit_module errno 38
delete_module errno 38
syslog errno 1
ioctl errno 1 [1,0x5000940e,SCMP_CMP_MASKED_EQ,0xffffffff]
ioctl errno 1 [1,0x50009401,SCMP_CMP_MASKED_EQ,0xffffffff]
ioctl errno 1 [1,0x50009418,SCMP_CMP_MASKED_EQ,0xffffffff]
ioctl errno 1 [1,0x50009417,SCMP_CMP_MASKED_EQ,0xffffffff]
`

// seccompProfile is the policy file that guests are started with. The monitor reads
// it again when a guest reboots itself, so it stays on disk.
func (d *Driver) seccompProfile() string {
	if d.o.SeccompProfile != "" {
		return d.o.SeccompProfile
	}
	return filepath.Join(d.o.StateDir, "seccomp.policy")
}

func (d *Driver) writeSeccompProfile() error {
	if d.o.SeccompProfile != "" {
		return nil
	}
	return writeFile(d.seccompProfile(), []byte(seccompPolicy), true)
}
