"""Asks for what the REST API does not let through with the lab's settings, by nova's own code.

    compute.py soft-delete SERVER...    as DELETE does where reclaim_instance_interval is set
    compute.py refused SERVER...        what a compute host is asked where there are volumes, several cells, or live migrations under way
    compute.py cache-images HOST SECONDS IMAGE...   as the conductor does with an rpc_response_timeout of so many seconds
    compute.py tell-usage HOST PERIOD               as the host's usage audit with that instance_usage_audit_period, without the task log

cache-images writes the answer, a JSON object. refused writes one JSON object per method: method, error (the class of the exception), text. The last one is of no
method: its text is the number of volumes that the server has.
"""
import json
import sys
import uuid

from oslo_messaging.rpc import client

from nova import config
from nova import context
from nova import objects
from nova import rpc
from nova import utils
from nova.compute import api
from nova.compute import rpcapi
from nova.compute import utils as compute_utils

config.parse_args(["nova"])
objects.register_all()
compute = api.API()


def write(method, error, text):
    print(json.dumps({"method": method, "error": error, "text": text}), flush=True)


def requester(project):
    return context.RequestContext(user_id=str(uuid.uuid4()), project_id=project, is_admin=True)


def ask(instance, method, *args):
    """Asks by a request of its own, which has an action named like the method, as one of the API's."""
    caller = requester(instance.project_id)
    objects.InstanceAction.action_start(caller, instance.uuid, method, want_result=False)
    try:
        getattr(rpcapi.ComputeAPI(), method)(caller, *args)
        write(method, "", "")
    except Exception as e:  # of a class that oslo.messaging has made of nova's
        write(method, next(c.__name__ for c in type(e).__mro__ if not c.__name__.endswith("_Remote")), str(e).splitlines()[0])


def refused(caller, instance):
    client._BaseCallContext.cast = client._BaseCallContext.call  # who casts is not told of a refusal
    host, volume, other = instance.host, str(uuid.uuid4()), str(uuid.uuid4())
    ask(instance, "reserve_block_device_name", instance, None, volume, None, None, None, False)
    ask(instance, "detach_volume", instance, volume)
    ask(instance, "swap_volume", instance, volume, other, str(uuid.uuid4()))

    migration = objects.Migration(caller, uuid=str(uuid.uuid4()), instance_uuid=instance.uuid, status="pre-migrating", migration_type="resize",
                                  source_compute=host, dest_compute=host, cross_cell_move=True)
    spec = objects.RequestSpec.get_by_instance_uuid(context.get_admin_context(), instance.uuid)
    ask(instance, "prep_snapshot_based_resize_at_dest", instance, instance.flavor, instance.node, migration, objects.SchedulerLimits(), spec, host)

    ask(instance, "check_can_live_migrate_source", instance, None)
    ask(instance, "pre_live_migration", instance, False, None, host, None)
    ask(instance, "live_migration", instance, host, False, host, migration, None)
    ask(instance, "post_live_migration_at_destination", instance, False, host)
    ask(instance, "rollback_live_migration_at_destination", instance, host, True, None)
    ask(instance, "drop_move_claim_at_destination", instance, host)
    ask(instance, "live_migration_force_complete", instance, migration)
    ask(instance, "live_migration_abort", instance, 1)

    mappings = objects.BlockDeviceMappingList.get_by_instance_uuid(caller, instance.uuid)
    write("", "", str(sum(m.is_volume for m in mappings)))


def cache_images(host, seconds, *images):
    config.CONF.set_override("rpc_response_timeout", int(seconds))
    print(json.dumps(rpcapi.ComputeAPI().cache_images(context.get_admin_context(), host, list(images))))


def tell_usage(host, period):
    config.CONF.set_override("instance_usage_audit_period", period)
    caller = context.get_admin_context()
    begin, end = utils.last_completed_audit_period()
    for instance in objects.InstanceList.get_active_by_window_joined(
            caller, begin, end, host=host, expected_attrs=["system_metadata", "info_cache", "metadata", "flavor"]):
        compute_utils.notify_usage_exists(rpc.get_notifier("compute", host), caller, instance, host, ignore_missing_network_data=False)


of_hosts = {"cache-images": cache_images, "tell-usage": tell_usage}
if sys.argv[1] in of_hosts:
    of_hosts[sys.argv[1]](*sys.argv[2:])
    sys.exit()
do = {"soft-delete": compute.soft_delete, "refused": refused}[sys.argv[1]]
for server in sys.argv[2:]:
    mapping = objects.InstanceMapping.get_by_instance_uuid(context.get_admin_context(), server)
    caller = requester(mapping.project_id)
    do(caller, compute.get(caller, server, expected_attrs=["flavor", "info_cache", "metadata", "system_metadata", "numa_topology"]))
