# weir_library(NAME SRCS a.cc ... [DEPS x ...] [PRIVATE_DEPS y ...])
#   A folder's static library.  What it does not name in DEPS or PRIVATE_DEPS it cannot link: this is how the arrows of
#   docs/ARCHITECTURE.md are kept (tests/arrows checks the includes as well).
function(weir_library name)
  cmake_parse_arguments(arg "" "" "SRCS;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${name} STATIC ${arg_SRCS})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC ${arg_DEPS} PRIVATE weir_warnings ${arg_PRIVATE_DEPS})
endfunction()

# weir_program(NAME SRCS ... DEPS ...): a program at build/<preset>/bin/.
function(weir_program name)
  cmake_parse_arguments(arg "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${arg_SRCS})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE weir_warnings ${arg_DEPS})
endfunction()

# WEIR_SOURCE_DIR and WEIR_BINARY_DIR for tests, as calls of a library: a path in a compiler's command line would keep checkouts
# from sharing what is compiled.
file(WRITE ${CMAKE_BINARY_DIR}/test_paths/test_paths.h "#pragma once
namespace weir {
const char* TestSourceDir();
const char* TestBinaryDir();
}  // namespace weir
#define WEIR_SOURCE_DIR ::weir::TestSourceDir()
#define WEIR_BINARY_DIR ::weir::TestBinaryDir()
")
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/test_paths/test_paths.cc CONTENT "#include \"test_paths.h\"
namespace weir {
const char* TestSourceDir() { return \"${PROJECT_SOURCE_DIR}\"; }
const char* TestBinaryDir() { return \"${CMAKE_BINARY_DIR}\"; }
}  // namespace weir
")
add_library(test_paths STATIC ${CMAKE_BINARY_DIR}/test_paths/test_paths.cc)
target_include_directories(test_paths PUBLIC ${CMAKE_BINARY_DIR}/test_paths)
target_compile_options(test_paths INTERFACE -include test_paths.h)

# What `tools/dev test --tsan` builds and runs: tests with the label `threads`.
add_custom_target(tests_of_threads)

# weir_test(NAME LABEL unit|parity|golden|sim|e2e|fuzz SRCS ... DEPS ... [TIMEOUT s] [WHOLE] [THREADS])
#   One GoogleTest program.  Each TEST becomes a ctest entry of its own, or, with WHOLE, the program is one entry.
#   THREADS: more than one thread touches what it tests, so it belongs to the set that runs under ThreadSanitizer too.
function(weir_test name)
  cmake_parse_arguments(arg "WHOLE;THREADS" "LABEL;TIMEOUT" "SRCS;DEPS" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  if(WEIR_SANITIZE)
    math(EXPR arg_TIMEOUT "${arg_TIMEOUT} * 10")
  endif()
  add_executable(${name} ${arg_SRCS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests/bin)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE weir_warnings test_paths ${arg_DEPS} GTest::gmock GTest::gtest GTest::gtest_main)
  set(labels "${arg_LABEL}")
  if(arg_THREADS)
    list(APPEND labels threads)
    add_dependencies(tests_of_threads ${name})
  endif()
  if(arg_WHOLE)
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES LABELS "${labels}" TIMEOUT ${arg_TIMEOUT})
  else()
    gtest_discover_tests(${name} TEST_PREFIX ${name}. DISCOVERY_TIMEOUT 60
      PROPERTIES LABELS "${arg_LABEL}" TIMEOUT ${arg_TIMEOUT})
    if(arg_THREADS)  # discovery takes one label only
      set(file ${CMAKE_CURRENT_BINARY_DIR}/${name}_labels.cmake)
      file(CONFIGURE OUTPUT ${file} CONTENT "if(@name@_TESTS)
  set_tests_properties(\${@name@_TESTS} PROPERTIES LABELS \"@labels@\")
endif()
" @ONLY)
      set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${file})
    endif()
  endif()
endfunction()

# weir_fuzz(NAME SRCS fuzz_x.cc DEPS ... CORPUS dir)
#   A parser of outside bytes.  With the preset `fuzz` a libFuzzer program; always a plain test over the committed corpus.
function(weir_fuzz name)
  cmake_parse_arguments(arg "" "CORPUS" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${arg_SRCS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests/bin)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE weir_warnings ${arg_DEPS})
  if(WEIR_FUZZ)
    target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    add_test(NAME ${name} COMMAND ${name} -runs=0 ${arg_CORPUS})
  else()
    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/fuzz/replay_main.cc)
    add_test(NAME ${name} COMMAND ${name} ${arg_CORPUS})
  endif()
  set_tests_properties(${name} PROPERTIES LABELS fuzz TIMEOUT 120)
endfunction()
