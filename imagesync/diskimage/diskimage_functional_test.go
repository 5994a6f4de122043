//go:build functional

package diskimage

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/imagesync/unpack"
	"github.com/compute-agent/compute-agent/internal/functest"
)

func needPrograms(t testing.TB, names ...string) {
	t.Helper()
	functest.Need(t, os.Geteuid() == 0, "root")
	for _, name := range names {
		_, err := exec.LookPath(name)
		functest.Need(t, err == nil, name)
	}
}

func script(t testing.TB, dir, text string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/bash", "-ec", text)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s\n%s", text, out)
	return string(out)
}

// makeSource makes a tree with all that a root file system may have, in dir/source.
const makeSource = `
mkdir source; cd source
mkdir -p etc usr/sbin var/empty home/user deep lost+found
printf 'root:x:0:0::/root:/bin/sh\n' > etc/passwd
printf 'proc /proc proc defaults 0 0\n' > etc/fstab
echo init > usr/sbin/init; chmod 755 usr/sbin/init
ln -s usr/sbin sbin
: > empty
head -c 50 /dev/urandom > inline
head -c 100 /dev/urandom > inline2
head -c 5000000 /dev/urandom > large
echo su > su; chown 3:4 su; chmod 4755 su
ln su usr/su2; ln su etc/su3
ln -s "$(printf 'x%.0s' {1..300})" slow; ln -s "$(printf 'y%.0s' {1..59})" fast59; ln -s "$(printf 'y%.0s' {1..60})" slow60
mkfifo pipe; chmod 600 pipe
truncate -s 40M sparse; printf middle | dd of=sparse bs=1 seek=20000000 conv=notrunc status=none; printf end | dd of=sparse bs=1 seek=41943037 conv=notrunc status=none
truncate -s 3000000 hole
for i in $(seq 1 200); do dd if=/dev/urandom of=ragged bs=4096 count=1 seek=$((i * 7)) conv=notrunc status=none; done
echo many > home/user/attrs; for i in $(seq 1 9); do setfattr -n user.k$i -v "value $i $(printf 'v%.0s' {1..50})" home/user/attrs; done
echo one > home/user/attr; setfattr -n user.one -v 1 home/user/attr
echo ping > ping; setcap cap_net_raw=ep ping
echo acl > acl; setfacl -m u:1000:rwx,g:7:r acl; setfacl -m d:u:5:rx home
chown 65535:65535 home/user
touch -h -d '1970-01-01 00:00:01 UTC' empty; touch -d '2035-05-05 05:05:05.123456789 UTC' inline
d=deep; for i in $(seq 1 40); do d=$d/d$i; done; mkdir -p $d; echo bottom > $d/file
mkdir big; (cd big; seq -f 'a-name-that-is-rather-long-so-that-the-directory-gets-some-blocks-%05g' 1 1200 | xargs touch); rm -f big/*00
mkdir "with space"; printf x > "with space/$(printf 'new\nline')"; printf x > "$(printf 'n%.0s' {1..255})"
touch -d '2001-02-03 04:05:06 UTC' etc usr var/empty . big home/user deep
`

// listing describes a tree: everything but sizes of directories and times of access.
const listing = `find . -mindepth 1 ! -path './lost+found*' -printf '%p %y %m %U:%G %n %l %T@ ' \( -type f -printf '%s\n' -o -printf '\n' \) | sort
find . -mindepth 1 ! -path './lost+found*' -print0 | sort -z | xargs -0 getfattr -hd -m - ; find . -type f -print0 | sort -z | xargs -0 sha256sum`

// copyImage copies the root out of an image file and lists it.
func copyImage(t testing.TB, file string, format Format) (dir string, stats unpack.Stats) {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	dir = filepath.Join(t.TempDir(), "tree")
	require.NoError(t, os.Mkdir(dir, 0o755))
	stats, err = Copy(t.Context(), Image{File: f, Size: info.Size(), Format: format, Arch: "x86_64"}, dir, unpack.Limits{Entries: 100_000, Bytes: 4 << 30, MaxID: 65535})
	require.NoError(t, err)
	return dir, stats
}

// TestFileSystems compares what mkfs has been given with what comes out.
func TestFileSystems(t *testing.T) {
	needPrograms(t, "mkfs.ext4", "setfattr", "setcap", "setfacl")
	work := t.TempDir()
	script(t, work, makeSource)
	want := script(t, work+"/source", listing)
	for name, options := range map[string]string{
		"ext4":           "-t ext4",
		"ext4 1k":        "-t ext4 -b 1024",
		"ext4 2k 32bit":  "-t ext4 -b 2048 -O ^64bit,^metadata_csum",
		"ext4 128 inode": "-t ext4 -I 128",
		"ext4 1k inode":  "-t ext4 -I 1024",
		"inline data":    "-t ext4 -O inline_data -I 256",
		"inline large":   "-t ext4 -O inline_data -I 512",
		"meta_bg":        "-t ext4 -O meta_bg,^resize_inode -b 1024",
		"no flex_bg":     "-t ext4 -O ^flex_bg,sparse_super2",
		"bigalloc":       "-t ext4 -O bigalloc -C 16384",
		"ea_inode":       "-t ext4 -O ea_inode -I 128",
		"verity, mmp":    "-t ext4 -O verity,mmp,metadata_csum_seed",
		"ext3":           "-t ext3",
		"ext3 1k":        "-t ext3 -b 1024",
		"ext2":           "-t ext2",
		"ext2 1k":        "-t ext2 -b 1024 -O none,ext_attr",
		"64k blocks":     "-t ext4 -b 65536 -F",
		"no journal":     "-t ext4 -O ^has_journal,large_dir,casefold",
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "image")
			script(t, work, "mkfs.ext4 -q -F "+options+" -E root_owner=0:0 -d source "+file+" 150M && e2fsck -fn "+file)
			dir, _ := copyImage(t, file, Raw)
			got := script(t, dir, listing)
			// mkfs writes whole seconds of 32 bits; TestMounted looks at the rest.
			requireSameText(t, wholeSeconds(want), wholeSeconds(got))
		})
	}
}

func wholeSeconds(list string) string {
	return fraction.ReplaceAllString(list, " ")
}

var fraction = regexp.MustCompile(`\.\d{10} `)

// requireSameText shows the first lines that differ, not all.
func requireSameText(t testing.TB, want, got string) {
	t.Helper()
	if want == got {
		return
	}
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			require.Equal(t, strings.Join(a[i:min(i+8, len(a))], "\n"), strings.Join(b[i:min(i+8, len(b))], "\n"))
		}
	}
	require.Len(t, b, len(a))
}

// TestMounted reads a file system that Linux is writing to: times with fractions,
// trees of extents and hashes that only the kernel makes, and a journal that was not replayed.
func TestMounted(t *testing.T) {
	needPrograms(t, "mkfs.ext4", "setfattr", "setcap", "setfacl")
	for name, options := range map[string]string{
		"checksums":    "-t ext4 -O metadata_csum,64bit",
		"1k":           "-t ext4 -b 1024 -O ^metadata_csum,^64bit",
		"ext3":         "-t ext3 -I 256",
		"data journal": "-t ext4 -J size=8",
		"inline data":  "-t ext4 -O inline_data",
		"ea_inode":     "-t ext4 -O ea_inode -b 1024",
	} {
		t.Run(name, func(t *testing.T) {
			work := t.TempDir()
			script(t, work, "mkfs.ext4 -q -F "+options+" image 300M; mkdir mnt")
			if name == "data journal" {
				script(t, work, "tune2fs -o journal_data image")
			}
			script(t, work, "mount -o loop image mnt")
			t.Cleanup(func() {
				if out, err := exec.Command("umount", work+"/mnt").CombinedOutput(); err != nil {
					t.Error(string(out))
				}
			})
			// The mount's own directory stands for the source; what follows exists in the journal only.
			script(t, work, "ln -s mnt source; mkdir() { [ \"$1\" = source ] || command mkdir \"$@\"; }\n"+makeSource+
				"touch -d '2100-05-05 05:05:05.123456789 UTC' inline; sync .; rm -r big/*5; echo more > home/more; mv etc/passwd usr/passwd; sync -f .")
			if name == "ea_inode" {
				script(t, work, "head -c 1500 /dev/urandom > value; python3 -c \"import os; os.setxattr('mnt/large', 'user.big', open('value','rb').read())\"; sync -f mnt")
			}
			want := script(t, work+"/mnt", listing)
			script(t, work, "fsfreeze -f mnt; cp --sparse=always image clean; fsfreeze -u mnt; printf '\\xc0\\x3b\\x39\\x98, the magic number of the journal' > mnt/later; rm mnt/home/more; mv mnt/usr/passwd mnt/etc/passwd")
			dir, _ := copyImage(t, work+"/clean", Raw)
			requireSameText(t, want, script(t, dir, listing))

			// As a snapshot of a running machine: what fsync has promised is there, though only in the journal.
			script(t, work, "python3 -c \"import os; fd=os.open('mnt/later', os.O_RDWR); os.fsync(fd)\"; cp --sparse=always image crashed")
			require.Contains(t, script(t, work, "dumpe2fs -h crashed 2>/dev/null | grep features:"), "needs_recovery")
			dir, _ = copyImage(t, work+"/crashed", Raw)
			got := script(t, dir, listing)
			script(t, work, "e2fsck -fy crashed || [ $? = 1 ]")
			dir, _ = copyImage(t, work+"/crashed", Raw)
			requireSameText(t, script(t, dir, listing), got)
			require.FileExists(t, dir+"/later")
			require.NoFileExists(t, dir+"/home/more")
		})
	}
}
