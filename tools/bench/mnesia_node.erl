%% One Mnesia node of the benchmark: takes commands as lines on stdin, answers on stdout, and ends
%% with stdin. `make NODE...` begins a cluster of this node and others; `write KIND CLIENTS SECONDS
%% BATCH` and `read KIND CLIENTS SECONDS` load it with so many processes, each waiting for its
%% answer, and print `COUNT ELAPSED_US P50_US P99_US`; `fill COUNT BATCH` keeps so many
%% transactions. The content of a transaction is in the environment's BENCH_CONTENT.

-module(mnesia_node).
-export([main/0, write/3, read/2]).

-record(transaction, {id, content}).

main() ->
    io:setopts([{encoding, latin1}]),
    serve(list_to_binary(os:getenv("BENCH_CONTENT"))).

serve(Content) ->
    case io:get_line("") of
        eof -> halt(0, [{flush, false}]);
        Line ->
            Answer = answer(string:lexemes(Line, " \n"), Content),
            io:format("~s~n", [Answer]),
            serve(Content)
    end.

answer(["ping"], _) -> "pong";
answer(["make" | Names], _) ->
    Nodes = [list_to_atom(Name) || Name <- Names],
    pong = hd(lists:usort([net_adm:ping(Node) || Node <- Nodes])),
    ok = mnesia:create_schema(Nodes),
    {_, []} = rpc:multicall(Nodes, mnesia, start, []),
    {atomic, ok} = mnesia:create_table(transaction, [
        {disc_copies, Nodes}, {majority, true}, {attributes, record_info(fields, transaction)}]),
    {_, []} = rpc:multicall(Nodes, mnesia, wait_for_tables, [[transaction], 10000]),
    "made";
answer(["write", Kind, Clients, Seconds, Batch], Content) ->
    load(Clients, Seconds, ?MODULE, write, [list_to_atom(Kind), list_to_integer(Batch), Content]);
answer(["read", Kind, Clients, Seconds], Content) ->
    Id = id(),
    {atomic, ok} = mnesia:sync_transaction(fun() -> put_one(Id, Content) end),
    load(Clients, Seconds, ?MODULE, read, [list_to_atom(Kind), Id]);
answer(["fill", Count, Batch], Content) ->
    Size = list_to_integer(Batch),
    [write(sync, Size, Content) || _ <- lists:seq(1, list_to_integer(Count) div Size)],
    "filled".

%% Acknowledged when every node has committed; `durable` also waits until all logs are on disk.
write(durable, Batch, Content) ->
    ok = write(sync, Batch, Content),
    Nodes = mnesia:system_info(running_db_nodes),
    {Results, []} = rpc:multicall(Nodes, mnesia, sync_log, []),
    [ok] = lists:usort(Results),
    ok;
write(sync, 1, Content) ->
    {atomic, ok} = mnesia:sync_transaction(fun() -> put_one(id(), Content) end),
    ok;
write(sync, Batch, Content) ->
    {atomic, ok} = mnesia:sync_transaction(fun() ->
        mnesia:write_lock_table(transaction),
        lists:foreach(fun(_) -> put_one(id(), Content) end, lists:seq(1, Batch))
    end),
    ok.

read(transaction, Id) ->
    {atomic, [_]} = mnesia:transaction(fun() -> mnesia:read(transaction, Id) end);
read(dirty, Id) ->
    [_] = mnesia:dirty_read(transaction, Id).

%% A copy, since the node would keep a single binary for all that refer to it.
put_one(Id, Content) -> mnesia:write(#transaction{id = Id, content = binary:copy(Content)}).

id() -> <<(erlang:system_time()):64, (erlang:unique_integer([positive])):64>>.

load(Clients, Seconds, Module, Function, Arguments) ->
    Started = now_us(),
    Until = Started + 1000000 * list_to_integer(Seconds),
    Parent = self(),
    Workers = [spawn_monitor(fun() ->
        Parent ! {self(), client(Until, Module, Function, Arguments, [])}
    end) || _ <- lists:seq(1, list_to_integer(Clients))],
    Times = lists:append([times_of(Worker) || Worker <- Workers]),
    Elapsed = now_us() - Started,
    Count = length(Times),
    Sorted = list_to_tuple(lists:sort(Times)),
    [P50, P99] = [element(ceil(Count * Percent / 100), Sorted) || Percent <- [50, 99]],
    lists:join(" ", [integer_to_list(N) || N <- [Count, Elapsed, P50, P99]]).

times_of({Pid, Monitor}) ->
    receive
        {Pid, Times} -> erlang:demonitor(Monitor, [flush]), Times;
        {'DOWN', Monitor, process, Pid, Reason} -> error(Reason)
    end.

client(Until, Module, Function, Arguments, Times) ->
    case now_us() of
        Begun when Begun >= Until -> Times;
        Begun ->
            apply(Module, Function, Arguments),
            client(Until, Module, Function, Arguments, [now_us() - Begun | Times])
    end.

now_us() -> erlang:monotonic_time(microsecond).
