// Package configdrive writes the documents that cloud-init reads of a server: the same as the
// metadata service gives (nova/api/metadata/base.py), as files. A container has no
// block device to find a labelled file system on; cloud-init's ConfigDrive source, and
// ds-identify before it, also take a directory /config-drive
// (cloudinit/sources/DataSourceConfigDrive.py:_get_data, tools/ds-identify:check_configdrive_v2).
// So a drive is a directory of the host, mounted read-only for the guest.
package configdrive
