%% SPDX-License-Identifier: MPL-2.0

%% What is appended to an exchange's Raft log: the commands of rabbit_delay_machine, as the machine's version
%% allows, by whoever sends them to the server that leads. It owns nothing.
%%
%% All are asynchronous: the caller gets {ra_event, ServerId, {applied, [{Correlation, Reply}]}} or
%% {rejected, {_, _, Correlation}}.
-module(rabbit_delay_commands).

-include("rabbit_delay.hrl").

-export([enqueue/5, open_session/3, note/2, settle/4, change/4]).

-export_type([correlation/0, change/0]).

%% From Ra 2.4 on the answer to any other is dropped, without a word.
-type correlation() :: integer() | reference().
%% What an operator asks for.
-type change() :: {cancel, Ids :: binary()} | {reschedule, Dues :: binary()} | purge | pause | resume.

%% Appends a batch; see rabbit_delay_machine for the command and its versions.
-spec enqueue(ra:server_id(), Session :: pos_integer() | {opened, ra:index()}, SeqNo :: pos_integer(),
              rabbit_delay_batch:entry(), correlation()) -> ok.
enqueue(ServerId, Session, SeqNo, {Kind, Earliest, Batch}, Correlation) ->
    Command = case {Session, Kind} of
                  {{opened, Opened}, 1} -> {enqueue, 3, Opened, SeqNo, Earliest, Batch};
                  {{opened, Opened}, 2} -> {enqueue, 4, Opened, SeqNo, Earliest, Batch};
                  {{opened, Opened}, 3} -> {enqueue, 6, Opened, SeqNo, Earliest, Batch};
                  {_, Version} -> {enqueue, Version, Session, SeqNo, Earliest, Batch}
              end,
    ra:pipeline_command(ServerId, Command, Correlation, normal).

%% Of this node's delay queue process, whose life Nonce is: from machine 2 on.
-spec open_session(ra:server_id(), Nonce :: binary(), correlation()) -> ok.
open_session(ServerId, Nonce, Correlation) ->
    ra:pipeline_command(ServerId, {open, 1, atom_to_binary(node()), Nonce}, Correlation, normal).

%% An entry that changes nothing: once it is applied, so is all before it.
-spec note(ra:server_id(), correlation()) -> ok.
note(ServerId, Correlation) ->
    ra:pipeline_command(ServerId, {note, 1}, Correlation, normal).

-spec settle(ra:server_id(), ra_machine:version(), Released :: binary(), correlation()) -> ok.
settle(ServerId, MachineVersion, Released, Correlation) ->
    Version = case ?KNOWS_RELEASES(MachineVersion) of
                  true -> 3;
                  false -> 2
              end,
    ra:pipeline_command(ServerId, {settle, Version, Released}, Correlation, normal).

%% By the dispatcher of Term.
-spec change(ra:server_id(), non_neg_integer(), change(), correlation()) -> ok.
change(ServerId, Term, Change, Correlation) ->
    Command = case Change of
                  {What, Binary} -> {What, 2, Term, Binary};
                  _ -> {Change, 1}
              end,
    ra:pipeline_command(ServerId, Command, Correlation, normal).
