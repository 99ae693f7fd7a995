"""Which command lines of a source are followed: what is listed, and nothing else."""

from __future__ import annotations

import pytest

from pageferry.policy.command_line import complaint_about_launch
from pageferry.policy.followed_command import FollowRules, NotFollowedError, followed_command

RULES = FollowRules(
    "/usr/bin/qemu-system-x86_64",
    ("/dev/shm/{name}", "/images/{name}/*", "/run/qemu/{name}.qmp"),
    ("{name}-*",),
)

GOOD = [
    "/home/mallory/evil-qemu",
    *("-name", "web1,debug-threads=on", "-nodefaults", "-no-user-config", "-display", "none"),
    *("-machine", "pc-q35-7.2,accel=kvm,memory-backend=m", "-cpu", "host,+x2apic", "-m", "4096M"),
    *("-smp", "2,sockets=2", "-uuid", "6c7d8e2e-58f1-4222-8333-123456789abc", "-rtc", "base=utc"),
    *("-object", "memory-backend-file,id=m,size=4G,mem-path=/dev/shm/web1,share=on"),
    *("-drive", "file=/images/web1/root.raw,if=none,id=d,format=raw,cache=none,aio=native"),
    *("-device", "virtio-blk-pci,drive=d,bootindex=1"),
    *("-blockdev", '{"driver":"file","filename":"/images/web1/b.raw","node-name":"f"}'),
    *("-blockdev", "driver=raw,node-name=b,file=f"),
    *("-netdev", "tap,id=n,ifname=web1-0,script=no,downscript=no,vhost=on"),
    *("-device", '{"driver":"virtio-net-pci","netdev":"n","mac":"52:54:00:12:34:56"}'),
    *("-append", "root=/dev/vda1 init=/bin/sh", "-kernel", "/images/web1/vmlinuz"),
    *("-qmp", "unix:/run/qemu/web1.qmp,server=on,wait=off", "-S", "-pidfile", "/run/x.pid"),
]


def follow(*words: str) -> tuple[list[str], list[str]]:
    return followed_command(["/usr/bin/qemu", *words], RULES, "web1")


def test_ordinary_machine_is_followed_with_this_hosts_program_and_choices() -> None:
    command, files = followed_command(GOOD, RULES, "web1")
    assert command[0] == RULES.program
    assert command[-5:-2] == ["-S", "-incoming", "defer"]
    assert command.count("-S") == 1
    assert "spawn=deny" in command[-1]
    assert "-pidfile" not in command
    assert complaint_about_launch(command, "/run/qemu/web1.qmp") == ""
    assert files == [
        *("/dev/shm/web1", "/images/web1/root.raw", "/images/web1/b.raw"),
        *("/images/web1/vmlinuz", "/run/qemu/web1.qmp"),
    ]
    kept = [word for word in GOOD[1:] if word not in ("-S", "-pidfile", "/run/x.pid")]
    assert command[1:-5] == kept, "word by word"


@pytest.mark.parametrize(
    "words",
    [
        # Programs, scripts and libraries.
        ("-netdev", "tap,id=n,ifname=web1-0,script=/tmp/evil,downscript=no"),
        ("-netdev", "tap,id=n,ifname=web1-0"),
        ("-netdev", "bridge,id=n,helper=/tmp/evil"),
        ("-plugin", "/tmp/evil.so"),
        ("-incoming", "exec:evil", "-chardev", "pipe,id=c,path=/dev/shm/web1"),
        ("-readconfig", "/images/web1/evil.cfg"),
        ("-run-with", "chroot=/"),
        ("-runas", "root"),
        ("-daemonize",),
        ("-sandbox", "off", "-monitor", "stdio"),
        ("-accel", "tcg,plugin=x"),
        # Files of others, or beyond this host.
        ("-drive", "file=/images/db1/root.raw,format=raw"),
        ("-drive", "file=/images/web1/../db1/root.raw,format=raw"),
        ("-drive", "file=/images/web1/a/b,format=raw"),
        ("-drive", "file=//images/web1/a,format=raw"),
        ("-drive", "file=images/web1/a,format=raw"),
        ("-drive", "file=nbd://evil/x,format=raw"),
        ("-drive", "file=json:{},format=raw"),
        ("-drive", "file=/images/web1/a"),
        ("-drive", "file=/images/web1/a,format=vvfat"),
        ("-drive", "file=/images/web1/a,format=raw,backing.file.filename=/etc/shadow"),
        ("-blockdev", "driver=nbd,node-name=x,host=evil"),
        ("-blockdev", "driver=qcow2,node-name=x,file.driver=nbd,file.host=evil"),
        ("-blockdev", "driver=qcow2,node-name=x,file.driver=file,file.filename=/etc/shadow"),
        ("-blockdev", '{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}'),
        ("-blockdev", '{"driver":"raw","file":{"driver":"raw","file":{"driver":"file"}}}'),
        ("-kernel", "/etc/shadow"),
        ("-initrd", "/images/web1/initrd,/etc/shadow"),
        ("-initrd", "/images/web1/a,shadow"),
        ("-initrd", "/images/web1/a x"),
        ("-object", "memory-backend-file,id=m,size=1G,mem-path=/dev/shm/db1"),
        ("-object", "memory-backend-file,id=m,size=1G,mem-path=/dev/shm/web1,readonly=on"),
        ("-object", "secret,id=s,file=/etc/shadow"),
        ("-object", "rng-random,id=r,filename=/etc/shadow"),
        ("-object", '{"qom-type":"secret","id":"s","file":"/etc/shadow"}'),
        ("-fsdev", "local,id=f,path=/,security_model=none"),
        ("-virtfs", "local,path=/"),
        ("-device", "vfio-pci,host=0000:00:01.0"),
        ("-device", "vhost-user-blk-pci,chardev=c"),
        ("-device", "virtio-net-pci,netdev=n,romfile=evil"),
        ("-device", "virtio-net-pci,netdev=/x"),
        ("-device", "pci-testdev"),
        ("-global", "virtio-net-pci.romfile=evil"),
        ("-machine", "q35,dumpdtb=evil"),
        ("-machine", "q35,firmware=evil"),
        ("-M", "q35,accel=kvm:xen"),
        ("-boot", "splash=evil"),
        ("-boot", "order=c,splash=evil"),
        ("-smbios", "file=/etc/shadow"),
        ("-acpitable", "file=/etc/shadow"),
        ("-fw_cfg", "name=opt/x,file=/etc/shadow"),
        ("-chardev", "socket,id=c,host=evil,port=1"),
        ("-chardev", "socket,id=c,path=/run/docker.sock"),
        ("-chardev", "file,id=c,path=/dev/shm/web1"),
        ("-serial", "file:/etc/passwd"),
        ("-serial", "tcp:evil:1"),
        ("-qmp", "tcp:0:4444,server=on"),
        ("-qmp", "unix:/run/qemu/db1.qmp,server=on"),
        ("-netdev", "user,id=n,hostfwd=tcp::22-:22"),
        ("-netdev", "tap,id=n,ifname=db1-0,script=no,downscript=no"),
        ("-netdev", "socket,id=n,connect=evil:1"),
        ("-vnc", ":0"),
        ("-spice", "port=1"),
        ("-display", "vnc=:0"),
        ("-D", "/etc/passwd", "-trace", "file=/etc/passwd"),
        # What is not read as QEMU reads it.
        ("/images/web1/root.raw",),
        ("-m",),
        ("-drive", "file=/images/web1/a,format=raw,file=/etc/shadow"),
        ("-append", "x" * 5000),
        ("-nodefaults",) * 2000,
    ],
)
def test_everything_else_refuses_the_whole_command_line(words: tuple[str, ...]) -> None:
    with pytest.raises(NotFollowedError):
        follow(*words)


def test_options_of_the_sources_host_are_not_taken_over() -> None:
    command, files = follow("-D", "/etc/passwd", "-pidfile", "/etc/passwd", "-sandbox", "off")
    assert "/etc/passwd" not in command
    assert files == []
    assert command[1] == "-S"


@pytest.mark.parametrize("name", ["*", "web?", "[a-z]"])
def test_guests_name_is_no_pattern(name: str) -> None:
    with pytest.raises(NotFollowedError):
        followed_command(["q", "-kernel", "/images/web1/x"], RULES, name)
    command, _ = followed_command(["q", "-kernel", f"/images/{name}/x"], RULES, name)
    assert command[2] == f"/images/{name}/x"
