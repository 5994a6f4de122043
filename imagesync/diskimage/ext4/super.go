package ext4

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Features (Linux fs/ext4/ext4.h: EXT4_FEATURE_*).
const (
	compatHasJournal   = 0x4
	compatSparseSuper2 = 0x200

	incompatCompression = 0x1
	incompatFiletype    = 0x2
	incompatRecover     = 0x4
	incompatJournalDev  = 0x8
	incompatMetaBG      = 0x10
	incompatExtents     = 0x40
	incompat64Bit       = 0x80
	incompatMMP         = 0x100
	incompatFlexBG      = 0x200
	incompatEAInode     = 0x400
	incompatDirData     = 0x1000
	incompatCsumSeed    = 0x2000
	incompatLargeDir    = 0x4000
	incompatInlineData  = 0x8000
	incompatEncrypt     = 0x10000 // refused where it is used: at an inode
	incompatCasefold    = 0x20000

	incompatKnown = incompatFiletype | incompatRecover | incompatMetaBG | incompatExtents | incompat64Bit | incompatMMP | incompatFlexBG |
		incompatEAInode | incompatCsumSeed | incompatLargeDir | incompatInlineData | incompatEncrypt | incompatCasefold

	// Features that forbid writing only (ro_compat) need no look, but for the place of backups.
	roCompatSparseSuper = 0x1
)

const (
	superOffset = 1024
	superSize   = 1024
	magic       = 0xef53
)

// superblock has what a reader needs of it.
type superblock struct {
	inodes, inodesPerGroup     uint32
	blocks, free               uint64
	overhead                   uint64 // blocks of the file system itself; 0: not recorded
	firstData, perGroup        uint32
	blockBits                  uint32
	inodeSize                  uint32
	descSize                   uint32
	compat, incompat, roCompat uint32
	firstMetaBG                uint32
	backupGroups               [2]uint32
	journalInode               uint32
	label                      string
	uuid                       [16]byte
	blockSize                  int
	hasDescriptorsOf64Bytes    bool
}

func parseSuper(raw []byte, size int64) (superblock, error) {
	le := binary.LittleEndian
	if le.Uint16(raw[0x38:]) != magic {
		return superblock{}, bad("has no superblock")
	}
	sb := superblock{
		inodes: le.Uint32(raw), inodesPerGroup: le.Uint32(raw[0x28:]),
		blocks: uint64(le.Uint32(raw[0x4:])), free: uint64(le.Uint32(raw[0xc:])),
		firstData: le.Uint32(raw[0x14:]), perGroup: le.Uint32(raw[0x20:]), blockBits: le.Uint32(raw[0x18:]) + 10,
		inodeSize: 128, descSize: 32,
		label: text(raw[0x78:0x88]), uuid: [16]byte(raw[0x68:]),
	}
	if le.Uint32(raw[0x4c:]) > 0 { // revision 1: dynamic
		sb.inodeSize = uint32(le.Uint16(raw[0x58:]))
		sb.compat, sb.incompat, sb.roCompat = le.Uint32(raw[0x5c:]), le.Uint32(raw[0x60:]), le.Uint32(raw[0x64:])
		sb.firstMetaBG = le.Uint32(raw[0x104:])
		sb.journalInode = le.Uint32(raw[0xe0:])
		sb.overhead = uint64(le.Uint32(raw[0x248:]))
		sb.backupGroups = [2]uint32{le.Uint32(raw[0x24c:]), le.Uint32(raw[0x250:])}
	}
	if sb.incompat&incompat64Bit != 0 {
		sb.blocks |= uint64(le.Uint32(raw[0x150:])) << 32
		sb.free |= uint64(le.Uint32(raw[0x158:])) << 32
		sb.descSize = uint32(le.Uint16(raw[0xfe:]))
		sb.hasDescriptorsOf64Bytes = sb.descSize >= 64
	}
	return sb, sb.check(size)
}

// blockBytes is the size of a block for arithmetic with numbers of the disk.
func (sb *superblock) blockBytes() uint64 { return 1 << sb.blockBits }

func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// check refuses what no sound file system has and what cannot be read.
func (sb *superblock) check(size int64) error {
	if err := sb.checkFeatures(); err != nil {
		return err
	}
	if sb.blockBits > 16 {
		return bad("has blocks of 2^%d bytes", sb.blockBits)
	}
	sb.blockSize = 1 << sb.blockBits
	bs := sb.blockBytes()
	if sb.inodeSize < 128 || sb.inodeSize&(sb.inodeSize-1) != 0 || uint64(sb.inodeSize) > bs {
		return bad("has inodes of %d bytes", sb.inodeSize)
	}
	if sb.descSize < 32 || sb.descSize&(sb.descSize-1) != 0 || uint64(sb.descSize) > min(bs, 1024) {
		return bad("has group descriptors of %d bytes", sb.descSize)
	}
	if sb.blocks > uint64(size)/bs { //nolint:gosec // positive
		return bad("has %d blocks of %d bytes, more than its partition of %d bytes holds", sb.blocks, bs, size)
	}
	if uint64(sb.firstData) >= sb.blocks || sb.firstData > 1 || (sb.firstData == 1) != (bs == 1024) && sb.firstData != 0 {
		return bad("has its first data block at %d", sb.firstData)
	}
	if sb.perGroup == 0 || sb.inodesPerGroup == 0 || uint64(sb.inodesPerGroup) > 8*bs {
		return bad("has groups of %d blocks and %d inodes", sb.perGroup, sb.inodesPerGroup)
	}
	groups := (sb.blocks - uint64(sb.firstData) + uint64(sb.perGroup) - 1) / uint64(sb.perGroup)
	if groups > 1<<31 || groups*uint64(sb.inodesPerGroup) < uint64(sb.inodes) {
		return bad("has %d inodes in %d groups of %d", sb.inodes, groups, sb.inodesPerGroup)
	}
	sb.free = min(sb.free, sb.blocks)
	return nil
}

func (sb *superblock) checkFeatures() error {
	for _, refusal := range []struct {
		bit         uint32
		found, want string
	}{
		{incompatJournalDev, "is the journal of another file system", ""},
		{incompatCompression, "is compressed", "one without compression"},
		{incompatDirData, "has data in its directories (a Lustre target)", ""},
		{^uint32(incompatKnown), "has features of a later version", "one made with mkfs.ext4 -O of known features"},
	} {
		if found := sb.incompat & refusal.bit; found != 0 {
			return &Error{Found: fmt.Sprintf("%s (incompatible feature bits %#x)", refusal.found, found), Want: refusal.want}
		}
	}
	return nil
}

// hasBackup tells whether a group begins with a copy of the superblock (Linux
// fs/ext4/balloc.c:ext4_bg_has_super).
func (sb *superblock) hasBackup(group uint64) bool {
	switch {
	case group == 0:
		return true
	case sb.compat&compatSparseSuper2 != 0:
		return group == uint64(sb.backupGroups[0]) || group == uint64(sb.backupGroups[1])
	case group == 1 || sb.roCompat&roCompatSparseSuper == 0:
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		power := base
		for power < group {
			power *= base
		}
		if power == group {
			return true
		}
	}
	return false
}

// descriptorBlock finds the block of group descriptors number n (Linux
// fs/ext4/super.c:descriptor_loc).
func (sb *superblock) descriptorBlock(n uint64) uint64 {
	if sb.incompat&incompatMetaBG == 0 || n < uint64(sb.firstMetaBG) {
		return uint64(superOffset>>sb.blockBits) + 1 + n
	}
	group := n * sb.blockBytes() / uint64(sb.descSize)
	block := uint64(sb.firstData) + group*uint64(sb.perGroup)
	if sb.hasBackup(group) {
		block++
	}
	if sb.blockSize == 1024 && n == 0 && sb.firstData == 0 {
		block++
	}
	return block
}
