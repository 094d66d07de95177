#!/usr/bin/env python3
"""Who may include whom.  CMake targets keep the arrows at link time; this keeps them for headers, which link nothing.

Usage: arrows.py ROOT
"""
import os, re, sys

# folder -> (folders of this project it may include, outside headers it must not include)
WIRE = r'grpc|google/protobuf|.*\.pb\.h'
LAWS = {
    'kernels': (['kernels'], WIRE + r'|spdlog|prometheus|nlohmann|CLI|boost|openssl'),
    'scheduler/core': (['scheduler/core'],
                       WIRE + r'|spdlog|prometheus|nlohmann|CLI|boost|openssl|chrono|thread|mutex|atomic|condition_variable|ctime'
                              r'|random|unordered_map|unordered_set|iostream|fstream|sys/.*|unistd\.h|absl/(?!container|hash|types).*'),
    'config': (['config'], WIRE + r'|prometheus|boost'),
    'metrics': (['metrics'], WIRE + r'|CLI|yaml-cpp.*'),
    'process': (['process'], WIRE + r'|prometheus|boost'),
    'channels': (['channels'], r'google/protobuf|.*\.pb\.h|CLI|boost|prometheus|spdlog'),
    'gateway/text': (['gateway/text'], WIRE + r'|CLI|boost|nlohmann'),
    'gateway/chat': (['gateway/chat', 'gateway/text'], WIRE + r'|CLI|boost'),
    'gateway/identity': (['gateway/identity'], WIRE + r'|CLI|boost'),
    'scheduler/service': (['scheduler', 'proto', 'channels', 'metrics', 'config'], r'CLI'),
    'worker/checkpoint': (['worker/checkpoint', 'kernels'], WIRE + r'|CLI|boost'),
    'worker/communicator': (['worker/communicator'], WIRE + r'|CLI|boost|nlohmann'),
    'worker/model': (['worker/checkpoint', 'worker/communicator', 'worker/model', 'worker/rank.h', 'worker/step_plan.h', 'kernels'],
                     WIRE + r'|CLI|boost|nlohmann'),
    'worker/service': (['worker', 'kernels', 'proto', 'channels', 'metrics', 'process', 'config'], r'boost|nlohmann'),
    'worker': (['worker', 'kernels', 'proto', 'metrics', 'config'], r'CLI'),
    'gateway/request': (['gateway/chat', 'gateway/identity', 'gateway/request', 'gateway/text'], r'grpc.*|CLI|boost'),
    'gateway/models': (['gateway/chat', 'gateway/models', 'gateway/request', 'gateway/text'], WIRE + r'|CLI|boost'),
    'gateway/replica': (['channels', 'gateway/clock.h', 'gateway/chat', 'gateway/identity', 'gateway/replica', 'gateway/request', 'gateway/text'],
                        r'CLI|boost|nlohmann'),
    'gateway/answer': (['gateway/clock.h', 'gateway/answer', 'gateway/chat', 'gateway/replica', 'gateway/text'],
                       WIRE + r'|CLI|boost|nlohmann|spdlog|prometheus'),
    'gateway/serving': (['gateway/clock.h', 'gateway/answer', 'gateway/chat', 'gateway/identity', 'gateway/replica', 'gateway/request',
                         'gateway/serving', 'gateway/text', 'metrics'], WIRE + r'|CLI|boost|nlohmann'),
    'gateway': (['gateway', 'proto', 'channels', 'metrics', 'process', 'config'], None),
}
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]', re.M)
TOP = ('kernels', 'scheduler', 'worker', 'gateway', 'proto', 'tools', 'tests', 'metrics', 'config', 'process', 'channels')


def law_of(path):
    for folder in sorted(LAWS, key=len, reverse=True):
        if path.startswith(folder + '/'):
            return folder, LAWS[folder]
    return None, None


def main():
    root, bad, num_files = sys.argv[1], [], 0
    for folder in TOP:
        for directory, _, names in os.walk(os.path.join(root, folder)):
            for name in names:
                if not name.endswith(('.h', '.cc', '.cu', '.cuh')):
                    continue
                path = os.path.relpath(os.path.join(directory, name), root)
                folder_name, law = law_of(path)
                if law is None:
                    continue
                num_files += 1
                with open(os.path.join(root, path), encoding='utf-8') as f:
                    includes = INCLUDE.findall(f.read())
                for _, target in includes:
                    if target.split('/')[0] in TOP and '/' in target:
                        if not any(target == ok or target.startswith(ok + '/') for ok in law[0]):
                            bad.append(f'{path}: {folder_name} may not include {target}')
                    elif law[1] and re.fullmatch(law[1] + '|(?:' + law[1] + r')[/.+].*', target):
                        bad.append(f'{path}: {folder_name} may not include <{target}>')
    print('\n'.join(bad) or f'{num_files} files keep the arrows')
    return 1 if bad or not num_files else 0


if __name__ == '__main__':
    sys.exit(main())
