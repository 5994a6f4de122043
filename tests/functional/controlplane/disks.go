package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Offsets and sizes of the partitions of Debian's cloud images, in sectors.
const (
	biosStart, biosSize = 2048, 6144
	efiStart, efiSize   = 8192, 253952
	rootStart           = 262144
	sector              = 512
)

// debianDiskPackages are of Debian's cloud images what matters for booting; their kernel and boot loader do not.
var debianDiskPackages = []string{
	"systemd-sysv", "systemd-resolved", "dbus", "udev", "netplan.io", "iproute2", "iputils-ping", "isc-dhcp-client", "openssh-server", "netbase",
	"procps", "cloud-init", "cloud-guest-utils", "fdisk", "e2fsprogs",
}

// debianDiskFiles are what Debian puts into its cloud images: mounts of partitions, a boot loader's configuration, the network.
var debianDiskFiles = map[string]string{
	"etc/fstab": "PARTUUID=" + rootPartUUID + " / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1\n" +
		"PARTUUID=" + efiPartUUID + " /boot/efi vfat defaults 0 0\n",
	"etc/hostname":                "localhost\n",
	"etc/hosts":                   "127.0.0.1 localhost\n",
	"etc/machine-id":              "",
	"etc/netplan/90-default.yaml": "network:\n  version: 2\n  ethernets:\n    all-eth:\n      match: {name: \"eth*\"}\n      dhcp4: true\n      dhcp6: true\n",
	"etc/cloud/cloud.cfg.d/91_lab.cfg": "locale: C.UTF-8\n" + // the only one that the harness leaves in
		"datasource:\n  OpenStack: {max_wait: 10, timeout: 3, retries: 1}\n", // there is no metadata service
	"etc/systemd/system/ssh-hostkeys.service": debianFiles["etc/systemd/system/ssh-hostkeys.service"],
	"etc/default/grub":                        "GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX=\"console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200\"\n",
	"boot/grub/grub.cfg":                      "linux /boot/vmlinuz root=PARTUUID=" + rootPartUUID + " ro\n",
	"boot/vmlinuz":                            "not a kernel\n",
	"boot/efi/placeholder":                    "below the mount of the EFI partition\n",
}

const (
	rootPartUUID = "5bd5f6a5-9a2b-4a7f-8a1e-6f1f0f6a1001"
	efiPartUUID  = "5bd5f6a5-9a2b-4a7f-8a1e-6f1f0f6a1015"
)

// DebianDisk is the Debian image as the distribution publishes it for virtual machines: a compressed qcow2 of a disk with a GPT, a
// BIOS, an EFI and a root partition that fstab names. It is made when it is asked for the first time.
func (p *Plane) DebianDisk(ctx context.Context) (string, error) {
	path := p.path("images", "debian-12-generic.qcow2")
	return path, p.once("debian-disk", func() error { return p.makeDebianDisk(ctx, path) })
}

func (p *Plane) makeDebianDisk(ctx context.Context, path string) error {
	work, err := os.MkdirTemp(p.Base, "disk-")
	if err != nil {
		return err
	}
	tree, disk := filepath.Join(work, "guest-disk"), filepath.Join(work, "disk.raw")
	err = p.fillDisk(ctx, tree, disk)
	if err == nil {
		_, err = host(ctx, "qemu-img", "convert", "-q", "-c", "-O", "qcow2", disk, path)
	}
	return errors.Join(err, os.RemoveAll(work))
}

func (p *Plane) fillDisk(ctx context.Context, tree, disk string) error {
	if err := p.debianTree(ctx, tree, debianDiskPackages, debianDiskFiles); err != nil {
		return err
	}
	const size = 2 << 30 // Debian's: 3 GiB, with a kernel
	rootSize := size/sector - rootStart - 2048
	layout := fmt.Sprintf("label: gpt\n"+
		"1: start=%d, size=%d, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=%s\n"+
		"14: start=%d, size=%d, type=21686148-6449-6E6F-744E-656564454649\n"+
		"15: start=%d, size=%d, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=%s\n",
		rootStart, rootSize, rootPartUUID, biosStart, biosSize, efiStart, efiSize, efiPartUUID)
	table := filepath.Join(filepath.Dir(disk), "layout")
	if err := os.WriteFile(table, []byte(layout), 0o600); err != nil {
		return err
	}
	steps := []string{
		fmt.Sprintf("truncate -s %d %s", size, disk),
		fmt.Sprintf("sfdisk -q %s < %s", disk, table),
		fmt.Sprintf("mkfs.vfat -F 16 --offset %d %s %d", efiStart, disk, efiSize/2),
		fmt.Sprintf("mkfs.ext4 -q -F -d %s -E offset=%d %s %dk", tree, rootStart*sector, disk, rootSize/2),
	}
	_, err := host(ctx, "/bin/sh", "-ec", strings.Join(steps, "\n"))
	return err
}

// BusyboxDisk is the busybox image as a raw disk with an MBR, in the given directory.
func (p *Plane) BusyboxDisk(ctx context.Context, dir string) (string, error) {
	disk, tree := filepath.Join(dir, "busybox.raw"), filepath.Join(dir, "tree")
	steps := []string{
		fmt.Sprintf("mkdir %s; tar -C %s --numeric-owner -xpzf %s", tree, tree, p.BusyboxPath()),
		fmt.Sprintf("truncate -s 64M %s; echo '2048,,L,*' | sfdisk -q %s", disk, disk),
		fmt.Sprintf("mkfs.ext4 -q -F -d %s -E offset=%d %s 60M", tree, 2048*sector, disk),
	}
	_, err := host(ctx, "/bin/sh", "-ec", strings.Join(steps, "\n"))
	return disk, err
}
