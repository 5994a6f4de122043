"""What the tests do on the message bus besides RPC: wait for a queue, put a message as it is, record everything published.

    bus.py URL wait QUEUE SECONDS
    bus.py URL publish EXCHANGE KEY          the body comes from standard input
    bus.py URL trace FILE                    the firehose (rabbitmqctl trace_on), one JSON object per line; says "ready"
"""
import json
import sys
import time

import kombu
from amqp import exceptions


def wait(connection, queue, seconds):
    end = time.time() + float(seconds)
    while True:
        try:
            if connection.channel().queue_declare(queue, passive=True).consumer_count:
                return
        except exceptions.NotFound:
            pass
        if time.time() > end:
            sys.exit("nobody consumes %s" % queue)
        time.sleep(0.2)


def publish(connection, exchange, key):
    producer = kombu.Producer(connection.channel())
    producer.publish(sys.stdin.buffer.read(), exchange=exchange, routing_key=key,
                     content_type="application/json", content_encoding="utf-8")


def trace(connection, path):
    channel = connection.channel()
    out = open(path, "w", buffering=1)

    def seen(message):
        body = message.body
        try:
            body = json.loads(body)
            body = json.loads(body["oslo.message"])
        except (ValueError, KeyError, TypeError):
            body = None
        headers = message.headers
        keys = headers.get("routing_keys") or [""]
        record = {"t": time.time(), "exchange": headers.get("exchange_name"), "key": keys[0]}
        if isinstance(body, dict):
            args = body.get("args") or {}
            instance = args.get("objinst")  # of an object's own method; a class method names the class
            name = instance.get("nova_object.name") if isinstance(instance, dict) else args.get("objname")
            record.update(method=body.get("method"), msg_id=body.get("_msg_id"), objname=name, objmethod=args.get("objmethod"),
                          event_type=body.get("event_type"), publisher=body.get("publisher_id"), priority=body.get("priority"),
                          payload=body.get("payload"))
        out.write(json.dumps(record) + "\n")

    queue = channel.queue_declare("", exclusive=True).queue
    channel.queue_bind(queue, "amq.rabbitmq.trace", "publish.#")
    channel.basic_consume(queue, no_ack=True, callback=seen)
    print("ready", flush=True)
    while True:
        connection.drain_events()


url, command, *rest = sys.argv[1:]
with kombu.Connection(url) as conn:
    {"wait": wait, "publish": publish, "trace": trace}[command](conn, *rest)
