#!/bin/sh
# Makes the database orders at the first start, and then runs the server with TLS.
set -eu
bin=$(echo /usr/lib/postgresql/*/bin)
data=${DATA:-/data}/pg
if ! [ -e "$data/ready" ]; then
    rm -rf "$data"
    "$bin/initdb" --pgdata="$data" --username=postgres --auth=scram-sha-256 --auth-local=trust --encoding=UTF8 --no-locale
    printf "CREATE ROLE orders LOGIN PASSWORD '%s'\nCREATE DATABASE orders OWNER orders\n" "$PASSWORD" |
        "$bin/postgres" --single -D "$data" postgres
    echo 'hostssl all all all scram-sha-256' >> "$data/pg_hba.conf"
    touch "$data/ready"
fi
# The kubelet opens a volume to the pod's group each time, which the server does not accept.
chmod -R go-rwx "$data"
exec "$bin/postgres" -D "$data" -c 'listen_addresses=*' -c "unix_socket_directories=$data" -c max_connections=300 \
    -c ssl=on -c "ssl_cert_file=${TLS:-/tls}/tls.crt" -c "ssl_key_file=${TLS:-/tls}/tls.key"
